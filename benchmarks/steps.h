// Steps of an explicit Runge–Kutta method with fixed sizes, shared by flow.cpp and networks.cpp.
//
// Include it where `P`, the length of the state, and `double field(const double* y, double* k)`, which writes −∇L to `k` and
// returns the loss, are known, after tableau.h.

#pragma once

inline double rms(const double* x, const double* scale) {
    double sum = 0;
    for (int p = 0; p < P; ++p) sum += (x[p] / scale[p]) * (x[p] / scale[p]);
    return std::sqrt(sum / P);
}

template <int S>  // k_S, …, k_{STAGES-1}; the last state in y1, its loss returned
inline double stages(const double* __restrict y, double (*k)[P], double h, double* __restrict y1) {
    for (int p = 0; p < P; ++p) {
        double sum = 0;
        for (int j = 0; j < S; ++j)
            if (a_lower[S][j] != 0) sum += a_lower[S][j] * k[j][p];
        y1[p] = y[p] + h * sum;
    }
    const double loss = field(y1, k[S]);
    if constexpr (S + 1 < STAGES)
        return stages<S + 1>(y, k, h, y1);
    else
        return loss;
}

double first_step(const double* y, const double* k, double rtol, double atol) {
    double scale[P], moved[P], km[P], diff[P];
    for (int p = 0; p < P; ++p) scale[p] = atol + std::abs(y[p]) * rtol;
    const double d0 = rms(y, scale), d1 = rms(k, scale);
    const double h0 = (d0 < 1e-5 || d1 < 1e-5) ? 1e-6 : 0.01 * d0 / d1;
    for (int p = 0; p < P; ++p) moved[p] = y[p] + h0 * k[p];
    field(moved, km);
    for (int p = 0; p < P; ++p) diff[p] = km[p] - k[p];
    const double d = std::max(d1, rms(diff, scale) / h0);
    const double h1 = d <= 1e-15 ? std::max(1e-6, h0 * 1e-3) : std::pow(0.01 / d, 1.0 / ORDER);
    return std::min(100 * h0, h1);
}
