// The practical limit: gradient flow of a deep linear network, one start after the other, in C++ with fixed sizes.
//
// The same method (a tableau of Diffrax's), first step, controller, tolerances and stop as gdflow's lanes, the crossing
// of the level located on the same interpolant; one thread per core. Starts are Gaussian with standard deviation
// 1/sqrt(fan-in), drawn here, or read from a file when results are to be compared start by start.
//
//   flow NUM SEED THREADS RTOL ATOL LEVEL MAX_STEPS [STARTS]
//
// prints seconds, number certified, mean steps; with STARTS also time (-1: undecided) and number of steps of each.
//
// Needs -DWIDTHS=6,5,5,3, problem.h (target, diagonal of the design) and tableau.h; benchmarks/peers.py writes both.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include "problem.h"
#include "tableau.h"

constexpr int widths[] = {WIDTHS};
constexpr int N = sizeof(widths) / sizeof(int) - 1;
constexpr int IN = widths[0], OUT = widths[N];

constexpr int offset(int layer) {  // of W_{layer+1} in the state
    int sum = 0;
    for (int j = 0; j < layer; ++j) sum += widths[j] * widths[j + 1];
    return sum;
}
constexpr int P = offset(N);
constexpr int partial(int layer) {  // of W_{layer} … W_1 among the partial products
    int sum = 0;
    for (int j = 1; j < layer; ++j) sum += widths[j] * IN;
    return sum;
}

#if defined(__AVX512F__)
constexpr int BLOCK_ROWS = 8, BLOCK_COLUMNS = 24;  // of sums that fit into registers
#else
constexpr int BLOCK_ROWS = 4, BLOCK_COLUMNS = 8;
#endif
// out = a b with a(i, k) = a[i * RI + k * RK], block by block so that sums stay in registers.
template <int R, int K, int C, int RI, int RK>
inline void multiply(const double* __restrict a, const double* __restrict b, double* __restrict out) {
    constexpr int W = std::min(C, BLOCK_COLUMNS), H = std::min(R, BLOCK_ROWS);
    auto block = [&](auto rows, auto columns, int i, int j) {
        constexpr int h = decltype(rows)::value, w = decltype(columns)::value;
        double sum[h][w];
        for (int r = 0; r < h; ++r)
            for (int c = 0; c < w; ++c) sum[r][c] = a[(i + r) * RI] * b[j + c];
        for (int k = 1; k < K; ++k)
            for (int r = 0; r < h; ++r)
                for (int c = 0; c < w; ++c) sum[r][c] += a[(i + r) * RI + k * RK] * b[k * C + j + c];
        for (int r = 0; r < h; ++r)
            for (int c = 0; c < w; ++c) out[(i + r) * C + j + c] = sum[r][c];
    };
    auto strip = [&](auto columns, int j) {
        int i = 0;
        for (; i + H <= R; i += H) block(std::integral_constant<int, H>{}, columns, i, j);
        if constexpr (R % H != 0) block(std::integral_constant<int, R % H>{}, columns, i, j);
    };
    int j = 0;
    for (; j + W <= C; j += W) strip(std::integral_constant<int, W>{}, j);
    if constexpr (C % W != 0) strip(std::integral_constant<int, C % W>{}, j);
}
template <int R, int K, int C>
inline void product(const double* a, const double* b, double* out) {  // out = a b
    multiply<R, K, C, K, 1>(a, b, out);
}
template <int R, int K, int C>
inline void product_left_transposed(const double* a, const double* b, double* out) {  // out = aᵀ b, a is K x R
    multiply<R, K, C, 1, R>(a, b, out);
}
template <int R, int K, int C>
inline void product_right_transposed(const double* a, const double* b, double* out) {  // out = a bᵀ, b is C x K
    double transposed[K * C];  // so that sums run over vectors
    for (int k = 0; k < K; ++k)
        for (int j = 0; j < C; ++j) transposed[k * C + j] = b[j * K + k];
    multiply<R, K, C, K, 1>(a, transposed, out);
}

template <int J>
inline void forward(const double* y, double* r) {  // r holds W_1, W_2 W_1, …, the last is the end-to-end matrix
    if constexpr (J <= N) {
        product<widths[J], widths[J - 1], IN>(y + offset(J - 1), r + partial(J - 1), r + partial(J));
        forward<J + 1>(y, r);
    }
}
template <int J>
inline void backward(const double* y, const double* r, const double* left, double* k) {  // left = (W_N…W_{J+1})ᵀ M D
    if constexpr (J == 1) {
        std::copy(left, left + widths[1] * IN, k);
    } else {
        product_right_transposed<widths[J], IN, widths[J - 1]>(left, r + partial(J - 1), k + offset(J - 1));
        double next[widths[J - 1] * IN];
        product_left_transposed<widths[J - 1], widths[J], IN>(y + offset(J - 1), left, next);
        backward<J - 1>(y, r, next, k);
    }
}

inline double residual(const double* y, double* r, double* m) {
    std::copy(y, y + widths[1] * IN, r);
    forward<2>(y, r);
    double loss = 0;
    for (int i = 0; i < OUT; ++i)
        for (int j = 0; j < IN; ++j) {
            const double x = target[i * IN + j] - r[partial(N) + i * IN + j] * design[j];
            loss += x * x;
            m[i * IN + j] = x;
        }
    return 0.5 * loss;
}
inline double field(const double* y, double* k) {
    double r[partial(N + 1)], m[OUT * IN];
    const double loss = residual(y, r, m);
    for (int i = 0; i < OUT; ++i)
        for (int j = 0; j < IN; ++j) m[i * IN + j] *= design[j];
    backward<N>(y, r, m, k);
    return loss;
}
inline double loss_at(const double* y) {
    double r[partial(N + 1)], m[OUT * IN];
    return residual(y, r, m);
}

#include "steps.h"

struct Outcome {
    double time;
    int steps;
};

Outcome integrate(double* y, double rtol, double atol, double level, int max_steps) {
    alignas(64) double k[STAGES][P], y1[P], scale[P], error[P];
    double t = 0, loss = field(y, k[0]);
    if (loss < level) return {0, 0};
    double h = first_step(y, k[0], rtol, atol);
    for (int steps = 1; steps <= max_steps; ++steps) {
        const double loss1 = stages<1>(y, k, h, y1);
        for (int p = 0; p < P; ++p) {
            double sum = 0;
            for (int j = 0; j < STAGES; ++j) sum += b_error[j] * k[j][p];
            error[p] = h * sum;
            scale[p] = atol + rtol * std::max(std::abs(y[p]), std::abs(y1[p]));
        }
        double e = rms(error, scale);
        if (!std::isfinite(e) || !std::isfinite(loss1)) e = HUGE_VAL;  // rejected and shortened
        const bool keep = e < 1;
        const double factor = std::clamp(0.9 * std::pow(1 / e, 1.0 / ORDER), keep ? 1.0 : 0.2, keep ? 10.0 : 0.9);
        if (keep && loss1 < level) {  // the crossing, by Illinois' regula falsi on the interpolant
            double low = 0, high = 1, f_low = loss - level, f_high = loss1 - level, at[P];
            for (int side = 0, i = 0; i < 100 && high - low > 1e-15; ++i) {
                const double x = (low * f_high - high * f_low) / (f_high - f_low);
                double weight[STAGES] = {};
                for (int s = 0; s < STAGES; ++s)
                    for (int c = DEGREE; c >= 0; --c) weight[s] = weight[s] * x + dense[s][c];
                for (int p = 0; p < P; ++p) {
                    double sum = 0;
                    for (int s = 0; s < STAGES; ++s) sum += weight[s] * k[s][p];
                    at[p] = y[p] + h * sum;
                }
                const double f = loss_at(at) - level;
                if (f == 0 || x == low || x == high) { low = high = x; break; }
                if (f > 0) {
                    low = x, f_low = f;
                    if (side == 1) f_high /= 2;
                    side = 1;
                } else {
                    high = x, f_high = f;
                    if (side == -1) f_low /= 2;
                    side = -1;
                }
            }
            return {t + h * high, steps};
        }
        if (keep) {
            t += h;
            loss = loss1;
            std::copy(y1, y1 + P, y);
            std::copy(k[STAGES - 1], k[STAGES - 1] + P, k[0]);
        }
        h *= factor;
    }
    return {-1, max_steps};
}

int main(int argc, char** argv) {
    const long num = std::atol(argv[1]), seed = std::atol(argv[2]);
    const int threads = std::atoi(argv[3]), max_steps = std::atoi(argv[7]);
    const double rtol = std::atof(argv[4]), atol = std::atof(argv[5]), level = std::atof(argv[6]);
    std::vector<double> given;
    if (argc > 8) {
        given.resize(num * P);
        FILE* file = std::fopen(argv[8], "rb");
        if (!file || std::fread(given.data(), sizeof(double), given.size(), file) != given.size()) {
            std::fprintf(stderr, "cannot read %ld starts of %d numbers from %s\n", num, P, argv[8]);
            return 1;
        }
        std::fclose(file);
    }
    std::vector<Outcome> outcomes(num);
    std::atomic<long> next{0};
    const auto begin = std::chrono::steady_clock::now();
    auto work = [&] {
        alignas(64) double y[P];
        constexpr long chunk = std::max(1, 4096 / P);  // starts drawn from one generator; few of them if they are long
        for (long first; (first = next.fetch_add(chunk)) < num;) {
            std::mt19937_64 bits(seed * 1000003 + first);
            std::normal_distribution<double> normal;
            for (long i = first; i < std::min(first + chunk, num); ++i) {
                if (given.empty())
                    for (int j = 0; j < N; ++j)
                        for (int p = offset(j); p < offset(j + 1); ++p)
                            y[p] = normal(bits) / std::sqrt(double(widths[j]));
                else
                    std::copy(&given[i * P], &given[i * P] + P, y);
                outcomes[i] = integrate(y, rtol, atol, level, max_steps);
            }
        }
    };
    std::vector<std::thread> pool;
    for (int i = 0; i < threads; ++i) pool.emplace_back(work);
    for (auto& thread : pool) thread.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    long certified = 0;
    double steps = 0;
    for (const auto& o : outcomes) certified += o.time >= 0, steps += o.steps;
    std::printf("%.9g %ld %.9g\n", seconds, certified, steps / num);
    if (!given.empty())
        for (const auto& o : outcomes) std::printf("%.17g %d\n", o.time, o.steps);
}
