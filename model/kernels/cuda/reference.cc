// The kernels' functions in plain C++ on the host, sums in double: the ops around them are tested by it without a GPU, and
// the kernels against it on one.
#include <cmath>
#include <cstring>
#include "bucket.h"
#include "launch.h"

namespace {

double fromHalf(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                           : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                            : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

/// To the nearest, ties to even.
uint16_t toHalf(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520) return sign | 0x7c00;
  if (magnitude == 0) return sign;
  int exponent;
  std::frexp(magnitude, &exponent);
  const int unit = exponent - 11 < -24 ? -24 : exponent - 11;
  const auto count = uint32_t(std::nearbyint(std::ldexp(magnitude, -unit)));
  // A count of 2,048 carries into the exponent by itself.
  return sign | uint16_t(((unit + 24) << 10) + count);
}

double at(const void* tensor, int64_t i) { return fromHalf(static_cast<const uint16_t*>(tensor)[i]); }
double silu(double x) { return x / (1 + std::exp(-x)); }

struct Row {
  const HstuView& view;
  int64_t from;
  double operator[](int c) const { return at(view.at, from + c); }
};

Row rowOf(const HstuView& view, int64_t token, int user, int head) {
  return {view, token * view.row + user * view.user + head * view.head};
}

/// In place.
void norm(double* y, int width, float epsilon, const void* gamma, const void* beta) {
  double mean = 0, squares = 0;
  for (int c = 0; c < width; c++) mean += y[c] / width;
  for (int c = 0; c < width; c++) squares += std::pow(y[c] - mean, 2) / width;
  for (int c = 0; c < width; c++) {
    y[c] = (y[c] - mean) / std::sqrt(squares + epsilon);
    if (gamma != nullptr) y[c] = y[c] * at(gamma, c) + at(beta, c);
  }
}

}  // namespace

extern "C" {

const char* hstuAttention(const HstuAttentionArgs* args) {
  const HstuAttentionArgs& a = *args;
  auto* out = static_cast<uint16_t*>(a.out);
  double* sum = new double[a.dv];
  for (int user = 0; user < a.users; user++) {
    const int64_t keys = a.lengths && a.lengths[user] < a.keys ? a.lengths[user] : a.keys;
    const int64_t* times = a.times ? a.times + int64_t(user) * (a.keys + (a.causal ? a.rows : 0)) : nullptr;
    for (int head = 0; head < a.heads; head++)
      for (int64_t i = 0; i < a.rows; i++) {
        for (int c = 0; c < a.dv; c++) sum[c] = 0;
        const Row q = rowOf(a.q, i, user, head);
        const auto add = [&](const Row& k, const Row& v, int64_t distance, int64_t seconds) {
          double score = 0;
          for (int c = 0; c < a.dqk; c++) score += q[c] * k[c];
          score *= a.alpha;
          if (a.posW) {
            const int64_t position = distance < 0 ? 0 : distance < a.positions ? distance : a.positions - 1;
            score += at(a.posW, position) + at(a.timeW, hstu::timeBucket(seconds));
          }
          const double weight = silu(score);
          for (int c = 0; c < a.dv; c++) sum[c] += weight * v[c];
        };
        const int64_t time = !a.posW ? 0 : a.causal ? times[a.keys + i] : a.queryTimes[user];
        for (int64_t j = 0; j < keys; j++)
          add(rowOf(a.k, j, user, head), rowOf(a.v, j, user, head), a.causal ? a.keys + i - j : keys - j,
              a.posW ? time - times[j] : 0);
        for (int64_t j = a.causal ? 0 : i; j <= i; j++)
          add(rowOf(a.ownK, j, user, head), rowOf(a.ownV, j, user, head), i - j,
              a.posW && a.causal ? time - times[a.keys + j] : 0);
        for (int c = 0; c < a.dv; c++)
          out[((i * a.users + user) * a.heads + head) * a.dv + c] = toHalf(sum[c] * a.scale);
      }
  }
  delete[] sum;
  return nullptr;
}

const char* hstuLinear(const HstuLinearArgs* args) {
  const HstuLinearArgs& a = *args;
  for (const HstuLinearPart& part : a.parts)
    for (int64_t r = 0; r < part.rows; r++)
      for (int c = part.begin; c < part.end; c++) {
        double sum = a.bias ? at(a.bias, c) : 0;
        for (int i = 0; i < a.depth; i++) sum += at(part.x, r * a.depth + i) * at(a.w, int64_t(i) * a.width + c);
        if (a.silu) sum = silu(sum);
        static_cast<uint16_t*>(part.y)[r * (part.end - part.begin) + c - part.begin] = toHalf(sum);
      }
  return nullptr;
}

const char* hstuGate(const HstuGateArgs* args) {
  const HstuGateArgs& g = *args;
  auto* out = static_cast<uint16_t*>(g.out);
  double* y = new double[g.width];
  for (int64_t r = 0; r < g.rows; r++) {
    for (int c = 0; c < g.width; c++) y[c] = at(g.a, r * g.width + c);
    norm(y, g.width, g.epsilon, g.gamma, g.beta);
    for (int c = 0; c < g.width; c++) {
      double u = at(g.uvqk, r * g.uvqkRow + c);
      if (g.act) u = silu(u);
      if (!g.concat) {
        out[r * g.width + c] = toHalf(u * y[c]);
        continue;
      }
      uint16_t* row = out + r * g.width * 3 + c;
      row[0] = toHalf(u);
      row[g.width] = static_cast<const uint16_t*>(g.a)[r * g.width + c];
      row[2 * g.width] = toHalf(u * y[c]);
    }
  }
  delete[] y;
  if (g.rows2 == 0) return nullptr;
  HstuGateArgs second = g;
  second.uvqk = g.uvqk2;
  second.a = g.a2;
  second.out = g.out2;
  second.rows = g.rows2;
  second.rows2 = 0;
  return hstuGate(&second);
}

const char* hstuNorm(const HstuNormArgs* args) {
  const HstuNormArgs& n = *args;
  double* y = new double[n.width];
  for (int64_t r = 0; r < n.rows; r++) {
    for (int c = 0; c < n.width; c++) {
      const int64_t i = r * n.width + c;
      y[c] = at(n.x, i);
      if (n.update == nullptr) continue;
      const uint16_t sum = toHalf(y[c] + at(n.update, i) + (n.bias ? at(n.bias, c) : 0));
      static_cast<uint16_t*>(n.sum)[i] = sum;
      y[c] = fromHalf(sum);
    }
    norm(y, n.width, n.epsilon, n.gamma, n.beta);
    for (int c = 0; c < n.width; c++) static_cast<uint16_t*>(n.out)[r * n.width + c] = toHalf(y[c]);
  }
  delete[] y;
  if (n.rows2 == 0) return nullptr;
  HstuNormArgs second = n;
  second.x = n.x2;
  second.update = n.update2;
  second.out = n.out2;
  second.sum = n.sum2;
  second.rows = n.rows2;
  second.rows2 = 0;
  return hstuNorm(&second);
}

const char* hstuEmbed(const HstuEmbedArgs* args) {
  const HstuEmbedArgs& e = *args;
  for (int64_t r = 0; r < e.rows; r++) {
    const int64_t from = r % e.users * (e.rows / e.users) + r / e.users;
    for (int c = 0; c < e.width; c++) {
      double sum = 0;
      for (int s = 0; s < e.slots; s++) sum += at(e.table, int64_t(e.ids[from * e.slots + s]) * e.width + c);
      for (int bit = 0; bit < e.actions; bit++)
        if (e.masks && uint32_t(e.masks[from]) >> bit & 1) sum += at(e.action, int64_t(bit) * e.width + c);
      static_cast<uint16_t*>(e.out)[r * e.width + c] = toHalf(sum);
    }
  }
  if (e.gamma != nullptr) {
    HstuNormArgs normed{};
    normed.x = e.out;
    normed.gamma = e.gamma;
    normed.beta = e.beta;
    normed.out = e.norm;
    normed.rows = e.rows;
    normed.width = e.width;
    normed.epsilon = e.epsilon;
    hstuNorm(&normed);
  }
  if (e.rows2 == 0) return nullptr;
  HstuEmbedArgs second = e;
  second.ids = e.ids2;
  second.masks = nullptr;
  second.out = e.out2;
  second.norm = e.norm2;
  second.rows = e.rows2;
  second.rows2 = 0;
  return hstuEmbed(&second);
}

const char* hstuCopy(void* to, const void* from, int64_t bytes, void*) {
  std::memcpy(to, from, size_t(bytes));
  return nullptr;
}

const char* hstuLogits(const HstuLogitsArgs* args) {
  const HstuLogitsArgs& l = *args;
  for (int64_t r = 0; r < l.rows; r++)
    for (int task = 0; task < l.tasks; task++) {
      double sum = at(l.bias, task);
      for (int c = 0; c < l.depth; c++) sum += at(l.x, r * l.depth + c) * at(l.w, int64_t(c) * l.tasks + task);
      l.out[(r % l.users * (l.rows / l.users) + r / l.users) * l.tasks + task] = float(sum);
    }
  return nullptr;
}
}
