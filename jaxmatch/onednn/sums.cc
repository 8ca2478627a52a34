// Sums over a batch for each channel: of a gradient, and of it times the centred input.

#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int64_t kBlock = 64;  // rows that are added up in float, before the sum goes to double

inline float Wide(float value) { return value; }
inline float Wide(uint16_t bits) {  // bfloat16
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

struct Rows {
  const float *origin, *factor, *shift;
  float slope;
  bool centred;
  int64_t channels;
};

// Adds to ``first`` and ``second`` what the rows of ``g`` and ``x`` in [begin, end) give.
template <typename G, typename X, bool kMask, bool kCentred>
void Add(const G* g, const X* x, const Rows& rows, int64_t begin, int64_t end, double* first,
         double* second) {
  const int64_t channels = rows.channels;
  const float slope = rows.slope;
  const float* __restrict origin = rows.origin;
  const float* __restrict factor = rows.factor;
  const float* __restrict shift = rows.shift;
  std::vector<float> sums(2 * channels);
  float* __restrict one = sums.data();
  float* __restrict two = sums.data() + channels;
  for (int64_t start = begin; start < end; start += kBlock) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t row = start; row < std::min(start + kBlock, end); ++row) {
      const G* __restrict gs = g + row * channels;
      const X* __restrict xs = x + row * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const float d = Wide(xs[c]) - origin[c];
        float value = Wide(gs[c]) - (kCentred ? origin[c] : 0.0f);
        if (kMask) value *= d * factor[c] + shift[c] > 0.0f ? 1.0f : slope;
        one[c] += value;
        two[c] += value * d;
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      first[c] += one[c];
      second[c] += two[c];
    }
  }
}

template <typename G, typename X>
void Sum(const void* g, const void* x, const Rows& rows, int64_t count, int threads, float* first,
         float* second) {
  const int64_t channels = rows.channels;
  std::vector<double> partial(2 * channels * threads);
  auto body = [&](int part, int parts) {
    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
    const auto add = rows.centred ? Add<G, X, false, true>
                     : rows.slope == 1.0f ? Add<G, X, false, false>
                                          : Add<G, X, true, false>;
    double* own = partial.data() + 2 * channels * part;
    add(static_cast<const G*>(g), static_cast<const X*>(x), rows, begin, end, own, own + channels);
  };
  Parallel(threads, body);
  for (int64_t c = 0; c < channels; ++c) {
    double one = 0, two = 0;
    for (int part = 0; part < threads; ++part) {
      one += partial[2 * channels * part + c];
      two += partial[2 * channels * part + channels + c];
    }
    first[c] = one;
    second[c] = two;
  }
}

using Floats = ffi::Buffer<ffi::F32>;

ffi::Error Sums(ffi::AnyBuffer g, ffi::AnyBuffer x, Floats origin, Floats factor, Floats shift,
                ffi::Result<Floats> first, ffi::Result<Floats> second, float slope,
                int64_t centred, int64_t devices) {
  try {
    const int64_t entries = origin.dimensions()[0], channels = origin.dimensions()[1];
    const int64_t count = x.element_count() / entries / channels;
    const auto sum = g.element_type() == ffi::F32
                         ? x.element_type() == ffi::F32 ? Sum<float, float> : Sum<float, uint16_t>
                     : x.element_type() == ffi::F32 ? Sum<uint16_t, float>
                                                    : Sum<uint16_t, uint16_t>;
    const Turn turn(devices);
    for (int64_t entry = 0; entry < entries; ++entry) {
      const auto at = [&](ffi::AnyBuffer& array) {
        return static_cast<char*>(array.untyped_data()) + array.size_bytes() / entries * entry;
      };
      const int64_t row = entry * channels;
      const Rows rows{origin.typed_data() + row,
                      factor.typed_data() + row,
                      shift.typed_data() + row,
                      slope,
                      centred != 0,
                      channels};
      // A thread is worth waking for some ten thousand values.
      const int64_t useful = 1 + count * channels / 16384;
      const int threads = static_cast<int>(std::min<int64_t>(Threads(devices), useful));
      sum(at(g), at(x), rows, count, threads, first->typed_data() + row,
          second->typed_data() + row);
    }
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("sums of channels: ") + error.what());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmatch_sums, Sums,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Attr<float>("slope")
                                  .Attr<int64_t>("centred")
                                  .Attr<int64_t>("devices"));
