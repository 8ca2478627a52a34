// Sums over a batch for each channel: of a gradient, and of the gradient times the centred input.

#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int64_t kBlock = 64;  // rows that are added up in float, before the sum goes to double
constexpr int64_t kLanes = 16;  // channels that are added up at a time
constexpr int64_t kChains = 4;  // sums of every fourth row, since one addition waits for the last

// GCC and Clang compile these to the vector instructions that the processor has.
typedef float Floats16 __attribute__((vector_size(64)));
typedef uint16_t Halves16 __attribute__((vector_size(32)));
typedef uint32_t Words16 __attribute__((vector_size(64)));

inline Floats16 Load(const float* from) {
  Floats16 values;
  std::memcpy(&values, from, sizeof values);
  return values;
}
inline Floats16 Load(const uint16_t* from) {  // bfloat16
  Halves16 halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Floats16)(__builtin_convertvector(halves, Words16) << 16);
}

struct Rows {
  const float *origin, *factor, *shift;
  float slope;
  bool centred;
  int64_t channels;
};

// Adds the sums of kLanes channels over ``count`` rows to ``first`` and ``second``. A row begins
// ``step`` values after the row before.
template <typename G, typename X, bool kMask, bool kCentred>
void AddLanes(const G* g, const X* x, const Rows& rows, int64_t channel, int64_t count,
              int64_t step, double* first, double* second) {
  const Floats16 origin = Load(rows.origin + channel), factor = Load(rows.factor + channel),
                 shift = Load(rows.shift + channel), slope = Floats16{} + rows.slope,
                 one = Floats16{} + 1.0f;
  Floats16 sum[kChains] = {}, dot[kChains] = {};
  const auto add = [&](int64_t row, int64_t chain) {
    const Floats16 d = Load(x + row * step) - origin;
    Floats16 value = Load(g + row * step);
    if (kCentred) value -= origin;
    if (kMask) value *= d * factor + shift > 0.0f ? one : slope;
    sum[chain] += value;
    dot[chain] += value * d;
  };
  int64_t row = 0;
  for (; row + kChains <= count; row += kChains) {
    for (int64_t chain = 0; chain < kChains; ++chain) add(row + chain, chain);
  }
  for (; row < count; ++row) add(row, 0);
  const Floats16 sums = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  const Floats16 dots = (dot[0] + dot[1]) + (dot[2] + dot[3]);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    first[lane] += sums[lane];
    second[lane] += dots[lane];
  }
}

// Adds the sums over the rows [begin, end) of ``g`` and ``x`` to ``first`` and ``second``.
template <typename G, typename X, bool kMask, bool kCentred>
void Add(const G* g, const X* x, const Rows& rows, int64_t begin, int64_t end, double* first,
         double* second) {
  const int64_t channels = rows.channels, whole = channels / kLanes * kLanes;
  // The last channels are copied to rows of kLanes, with zeros behind them.
  const int64_t left = channels - whole;
  std::vector<G> padded_g(left ? kBlock * kLanes : 0);
  std::vector<X> padded_x(padded_g.size());
  std::vector<float> padded(left ? 3 * kLanes : 0);
  double rest[2 * kLanes] = {};
  Rows last{padded.data(), padded.data() + kLanes, padded.data() + 2 * kLanes,
            rows.slope,    rows.centred,           kLanes};
  for (int64_t c = 0; c < left; ++c) {
    padded[c] = rows.origin[whole + c];
    padded[kLanes + c] = rows.factor[whole + c];
    padded[2 * kLanes + c] = rows.shift[whole + c];
  }
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t count = std::min(kBlock, end - start);
    const G* gs = g + start * channels;
    const X* xs = x + start * channels;
    for (int64_t c = 0; c < whole; c += kLanes) {
      AddLanes<G, X, kMask, kCentred>(gs + c, xs + c, rows, c, count, channels, first + c,
                                      second + c);
    }
    if (left) {
      for (int64_t row = 0; row < count; ++row) {
        std::copy_n(gs + row * channels + whole, left, padded_g.data() + row * kLanes);
        std::copy_n(xs + row * channels + whole, left, padded_x.data() + row * kLanes);
      }
      AddLanes<G, X, kMask, kCentred>(padded_g.data(), padded_x.data(), last, 0, count, kLanes,
                                      rest, rest + kLanes);
    }
  }
  for (int64_t c = 0; c < left; ++c) {
    first[whole + c] += rest[c];
    second[whole + c] += rest[kLanes + c];
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
    // Waking a thread pays off from about ten thousand values.
    const int64_t useful = 1 + count * channels / 16384;
    const int threads = static_cast<int>(std::min<int64_t>(Threads(devices), useful));
    const auto job = [&] {
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
        sum(at(g), at(x), rows, count, threads, first->typed_data() + row,
            second->typed_data() + row);
      }
    };
    threads > 1 ? Turns::Run(devices, job) : job();
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
