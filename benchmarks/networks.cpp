// The practical limit for nonlinear problems: gradient flow, one start after the other, in C++ with fixed sizes.
//
// The same method (a tableau of Diffrax's), first step, controller, tolerances and stop as gdflow's lanes: a start is done once
// the norm of its gradient is at or below the tolerance at the end of a step. One thread per core. Starts are Gaussian with
// standard deviation 1/sqrt(fan-in), drawn here, or read from a file when results are to be compared start by start.
//
//   networks NUM SEED THREADS RTOL ATOL TOLERANCE MAX_STEPS [STARTS]
//
// prints seconds, number converged, mean steps; with STARTS also loss and number of steps of each (-1: not converged).
//
// Needs tableau.h and problem.h, which benchmarks/networks.py writes: either a network d-h-o with tanh and the squared error
// (D, H, O, M; design, target, decay; samples padded with zeros to whole vectors) or, with TEACHER defined, ReLU students and
// teachers (D, H, O: dimension, students, teachers; teacher). Samples, or pairs of vectors, lie along vectors of eight numbers.
// With -ffast-math the compiler calls a vector library (glibc's libmvec) for tanh and acos; without it they are scalar.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "problem.h"
#include "tableau.h"

#ifdef TEACHER

constexpr int P = H * D;
constexpr int PAIRS = H * (H - 1) / 2 + H * O, PADDED = (PAIRS + 7) / 8 * 8;

inline double field(const double* __restrict y, double* __restrict k) {
    static const struct Teacher {
        double length[O], unit[O][D], constant = 0;
        Teacher() {
            for (int j = 0; j < O; ++j) {
                double square = 0;
                for (int d = 0; d < D; ++d) square += teacher[j][d] * teacher[j][d];
                length[j] = std::sqrt(square);
                for (int d = 0; d < D; ++d) unit[j][d] = teacher[j][d] / length[j];
            }
            for (int i = 0; i < O; ++i)
                for (int j = 0; j < O; ++j) {
                    double c = 0;
                    for (int d = 0; d < D; ++d) c += unit[i][d] * unit[j][d];
                    c = std::clamp(c, -1.0, 1.0);
                    constant += length[i] * length[j] * (std::sqrt(1 - c * c) + (M_PI - std::acos(c)) * c) / (4 * M_PI);
                }
        }
    } v;
    double length[H], unit[H][D], cosine[PADDED] = {}, sine[PADDED], rest[PADDED];
    double loss = v.constant;
    for (int i = 0; i < H; ++i) {
        double square = 0;
        for (int d = 0; d < D; ++d) square += y[i * D + d] * y[i * D + d];
        length[i] = std::sqrt(square);
        loss += square / 4;
        for (int d = 0; d < D; ++d) unit[i][d] = y[i * D + d] / length[i];
    }
    int pair = 0;
    for (int i = 0; i < H; ++i) {
        for (int j = i + 1; j < H; ++j) {
            double c = 0;
            for (int d = 0; d < D; ++d) c += unit[i][d] * unit[j][d];
            cosine[pair++] = c;
        }
        for (int j = 0; j < O; ++j) {
            double c = 0;
            for (int d = 0; d < D; ++d) c += unit[i][d] * v.unit[j][d];
            cosine[pair++] = c;
        }
    }
    for (int p = 0; p < PADDED; ++p) {
        const double c = std::min(1.0, std::max(-1.0, cosine[p]));
        sine[p] = std::sqrt((1 - c) * (1 + c));
        rest[p] = M_PI - std::acos(c);
    }
    double own[H] = {}, across[H][D];
    for (int i = 0; i < H; ++i)
        for (int d = 0; d < D; ++d) across[i][d] = M_PI * y[i * D + d];
    pair = 0;
    for (int i = 0; i < H; ++i) {
        for (int j = i + 1; j < H; ++j, ++pair) {
            own[i] += length[j] * sine[pair];
            own[j] += length[i] * sine[pair];
            for (int d = 0; d < D; ++d) {
                across[i][d] += rest[pair] * y[j * D + d];
                across[j][d] += rest[pair] * y[i * D + d];
            }
            loss += length[i] * length[j] * (sine[pair] + rest[pair] * cosine[pair]) / (2 * M_PI);
        }
        for (int j = 0; j < O; ++j, ++pair) {
            own[i] -= v.length[j] * sine[pair];
            for (int d = 0; d < D; ++d) across[i][d] -= rest[pair] * teacher[j][d];
            loss -= length[i] * v.length[j] * (sine[pair] + rest[pair] * cosine[pair]) / (2 * M_PI);
        }
    }
    for (int i = 0; i < H; ++i)
        for (int d = 0; d < D; ++d) k[i * D + d] = -(own[i] * unit[i][d] + across[i][d]) / (2 * M_PI);
    return loss;
}

#else

constexpr int P = H * D + O * H;
typedef double Vector __attribute__((vector_size(64), aligned(64)));

inline double sum(Vector x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

inline double field(const double* __restrict y, double* __restrict k) {
    const double *w1 = y, *w2 = y + H * D;
    Vector g1[H][D] = {}, g2[O][H] = {}, squares = {};  // sums over samples, eight at once
    for (int s = 0; s < M; s += 8) {
        Vector x[D], a[H], r[O];
        for (int d = 0; d < D; ++d) x[d] = *reinterpret_cast<const Vector*>(&design[d][s]);
        alignas(64) double z[H * 8];
        for (int i = 0; i < H; ++i) {
            Vector sum = w1[i * D] * x[0];
            for (int d = 1; d < D; ++d) sum += w1[i * D + d] * x[d];
            *reinterpret_cast<Vector*>(z + 8 * i) = sum;
        }
        for (int i = 0; i < H * 8; ++i) z[i] = std::tanh(z[i]);
        for (int i = 0; i < H; ++i) a[i] = *reinterpret_cast<Vector*>(z + 8 * i);
        for (int o = 0; o < O; ++o) {
            r[o] = *reinterpret_cast<const Vector*>(&target[o][s]);
            for (int i = 0; i < H; ++i) r[o] -= w2[o * H + i] * a[i];
            squares += r[o] * r[o];
            for (int i = 0; i < H; ++i) g2[o][i] += r[o] * a[i];
        }
        for (int i = 0; i < H; ++i) {
            Vector delta = w2[i] * r[0];
            for (int o = 1; o < O; ++o) delta += w2[o * H + i] * r[o];
            delta *= 1 - a[i] * a[i];
            for (int d = 0; d < D; ++d) g1[i][d] += delta * x[d];
        }
    }
    double loss = sum(squares), size = 0;
    for (int i = 0; i < H; ++i)
        for (int d = 0; d < D; ++d) k[i * D + d] = sum(g1[i][d]) - decay * w1[i * D + d];
    for (int o = 0; o < O; ++o)
        for (int i = 0; i < H; ++i) k[H * D + o * H + i] = sum(g2[o][i]) - decay * w2[o * H + i];
    for (int p = 0; p < P; ++p) size += y[p] * y[p];
    return 0.5 * (loss + decay * size);
}

#endif

#include "steps.h"

struct Outcome {
    double loss;
    int steps;
};

inline double norm(const double* x) {
    double sum = 0;
    for (int p = 0; p < P; ++p) sum += x[p] * x[p];
    return std::sqrt(sum);
}

Outcome integrate(double* y, double rtol, double atol, double tolerance, int max_steps) {
    alignas(64) double k[STAGES][P], y1[P], scale[P], error[P];
    double loss = field(y, k[0]);
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
        if (!(e < 1e300)) e = 1e300;  // rejected and shortened
        const bool keep = e < 1;
        const double factor = std::clamp(0.9 * std::pow(1 / e, 1.0 / ORDER), keep ? 1.0 : 0.2, keep ? 10.0 : 0.9);
        if (keep) {
            loss = loss1;
            std::copy(y1, y1 + P, y);
            std::copy(k[STAGES - 1], k[STAGES - 1] + P, k[0]);
            if (norm(k[0]) <= tolerance) return {loss, steps};
        }
        h *= factor;
    }
    return {loss, -1};
}

int main(int argc, char** argv) {
    const long num = std::atol(argv[1]), seed = std::atol(argv[2]);
    const int threads = std::atoi(argv[3]), max_steps = std::atoi(argv[7]);
    const double rtol = std::atof(argv[4]), atol = std::atof(argv[5]), tolerance = std::atof(argv[6]);
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
        for (long i; (i = next.fetch_add(1)) < num;) {
            std::mt19937_64 bits(seed * 1000003 + i);
            std::normal_distribution<double> normal;
            if (given.empty())
                for (int p = 0; p < P; ++p) y[p] = normal(bits) / std::sqrt(double(p < H * D ? D : H));
            else
                std::copy(&given[i * P], &given[i * P] + P, y);
            outcomes[i] = integrate(y, rtol, atol, tolerance, max_steps);
        }
    };
    std::vector<std::thread> pool;
    for (int i = 0; i < threads; ++i) pool.emplace_back(work);
    for (auto& thread : pool) thread.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    long converged = 0;
    double steps = 0;
    for (const auto& o : outcomes) converged += o.steps >= 0, steps += o.steps < 0 ? max_steps : o.steps;
    std::printf("%.9g %ld %.9g\n", seconds, converged, steps / num);
    if (!given.empty())
        for (const auto& o : outcomes) std::printf("%.17g %d\n", o.loss, o.steps);
}
