// Convolutions and their gradients by oneDNN, which XLA's compiled programs call.
//
// A convolution sum(images * kernel * results) over two of its three arrays gives the third:
// the results, the gradient of the images, or the gradient of the kernel. A bias may be
// added to the results. Arrays are dense, images [v b h w c], kernel [v k k c d], bias
// [v d], results [v b h' w' d]; entries of v are independent.
//
// A kernel of oneDNN is made for one shape. The most recent kernels are kept. They hold no memory of
// a call, so threads may share one.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <tuple>
#include <unordered_map>

#include "oneapi/dnnl/dnnl.hpp"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

#if DNNL_VERSION_MAJOR != 3
#error "oneDNN 3 is needed"
#endif
#if DNNL_CPU_RUNTIME != DNNL_RUNTIME_OMP
#error "a oneDNN that uses OpenMP is needed"
#endif

#ifndef JAXMATCH_PLANS
#define JAXMATCH_PLANS 512  // ResNet-50's step has some 90
#endif

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;

enum Role : int64_t { kImages, kKernel, kResults };

// All that a primitive of oneDNN depends on.
struct Problem {
  int64_t wanted;
  memory::data_type type;
  memory::dims images, kernel, results;  // [b c h w], [d c k k], [b d h w]
  memory::dims strides, before, after;   // before and after: padding
  bool bias;
  int threads;

  auto All() const {
    return std::tie(wanted, type, images, kernel, results, strides, before, after, bias, threads);
  }
  bool operator<(const Problem& other) const { return All() < other.All(); }
};

dnnl::engine& Engine() {
  static auto& engine = *new dnnl::engine(dnnl::engine::kind::cpu, 0);  // outlives its threads
  return engine;
}

dnnl::stream& Stream() {
  thread_local dnnl::stream stream(Engine());
  return stream;
}

struct Free {
  void operator()(void* block) const { std::free(block); }
};
using Block = std::unique_ptr<void, Free>;

Block Allocate(size_t bytes) {
  if (bytes == 0) return nullptr;
  constexpr size_t kLine = 64;
  Block block(std::aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine));
  if (!block) throw std::bad_alloc();
  return block;
}

// Addresses of the arrays of one entry; ``bias`` is null if there is none.
struct Arrays {
  void *images, *kernel, *results, *bias;
};

// One problem, ready to be computed; it never changes.
class Plan {
 public:
  explicit Plan(const Problem& p) : written_(p.wanted == kKernel) {
    using tag = memory::format_tag;
    images_ = memory::desc(p.images, p.type, tag::nhwc);
    results_ = memory::desc(p.results, p.type, tag::nhwc);
    kernel_ = memory::desc(p.kernel, p.type, tag::hwio);
    bias_ = p.bias ? memory::desc({p.kernel[0]}, p.type, tag::x) : memory::desc();
    const memory::desc any(p.kernel, p.type, tag::any);
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MINOR >= 4
    attr.set_deterministic(true);
#endif
    const auto algorithm = dnnl::algorithm::convolution_direct;
    const dnnl::convolution_forward::primitive_desc forward(
        Engine(), dnnl::prop_kind::forward_training, algorithm, images_, any, bias_, results_,
        p.strides, p.before, p.after, attr);
    if (p.wanted == kResults) {
      arguments_ = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_BIAS};
      Take(dnnl::convolution_forward(forward), forward, forward.weights_desc());
    } else if (p.wanted == kImages) {
      arguments_ = {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST, 0};
      const dnnl::convolution_backward_data::primitive_desc backward(
          Engine(), algorithm, images_, any, results_, p.strides, p.before, p.after, forward, attr);
      Take(dnnl::convolution_backward_data(backward), backward, backward.weights_desc());
    } else {
      arguments_ = {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST, 0};
      const dnnl::convolution_backward_weights::primitive_desc backward(
          Engine(), algorithm, images_, any, results_, p.strides, p.before, p.after, forward, attr);
      Take(dnnl::convolution_backward_weights(backward), backward, backward.diff_weights_desc());
    }
  }

  void Run(const Arrays& arrays) const {
    const Block scratch = Allocate(scratch_.get_size());
    const Block own = Allocate(reorder_ ? inner_.get_size() : 0);
    memory kernel(kernel_, Engine(), arrays.kernel);
    memory inner = reorder_ ? memory(inner_, Engine(), own.get()) : kernel;
    if (reorder_ && !written_) reorder_.execute(Stream(), kernel, inner);
    std::unordered_map<int, memory> given = {
        {arguments_[0], memory(images_, Engine(), arrays.images)},
        {arguments_[1], inner},
        {arguments_[2], memory(results_, Engine(), arrays.results)},
        {DNNL_ARG_SCRATCHPAD, memory(scratch_, Engine(), scratch.get())}};
    if (arrays.bias) given.emplace(arguments_[3], memory(bias_, Engine(), arrays.bias));
    primitive_.execute(Stream(), given);
    if (reorder_ && written_) reorder_.execute(Stream(), inner, kernel);
    Stream().wait();
  }

 private:
  template <typename Descriptor>
  void Take(dnnl::primitive primitive, const Descriptor& made, memory::desc inner) {
    primitive_ = std::move(primitive);
    scratch_ = made.scratchpad_desc();
    inner_ = inner;
    if (inner_ == kernel_) return;
    reorder_ = dnnl::reorder(dnnl::reorder::primitive_desc(
        Engine(), written_ ? inner_ : kernel_, Engine(), written_ ? kernel_ : inner_));
  }

  bool written_;  // the kernel
  dnnl::primitive primitive_;
  dnnl::reorder reorder_;  // empty where oneDNN has the kernel as it is
  memory::desc images_, kernel_, results_, bias_, inner_, scratch_;
  std::array<int, 4> arguments_;  // oneDNN's names for those of Arrays
};

// The plans of the most recent problems.
class Plans {
 public:
  std::shared_ptr<const Plan> Get(const Problem& problem) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = plans_.find(problem);
      if (found != plans_.end()) {
        found->second.used = ++clock_;
        return found->second.plan;
      }
    }
    auto made = std::make_shared<const Plan>(problem);  // takes milliseconds: others go on
    std::lock_guard<std::mutex> lock(mutex_);
    plans_[problem] = {made, ++clock_};
    if (plans_.size() > kMost) {
      plans_.erase(std::min_element(plans_.begin(), plans_.end(), [](auto& one, auto& other) {
        return one.second.used < other.second.used;
      }));
    }
    return made;
  }

 private:
  struct Entry {
    std::shared_ptr<const Plan> plan;
    uint64_t used;
  };
  static constexpr size_t kMost = JAXMATCH_PLANS;
  std::mutex mutex_;
  std::map<Problem, Entry> plans_;
  uint64_t clock_ = 0;
};

Plans& AllPlans() {
  static Plans& plans = *new Plans;  // never destroyed: a thread may be computing at exit
  return plans;
}

std::string Text(ffi::Span<const int64_t> shape) {
  std::ostringstream text;
  text << "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) text << (axis ? " " : "") << shape[axis];
  text << "]";
  return text.str();
}

using Integers = ffi::Span<const int64_t>;

ffi::Error Compute(Role wanted, ffi::AnyBuffer images, ffi::AnyBuffer kernel,
                   ffi::AnyBuffer results, ffi::AnyBuffer* bias, Integers strides,
                   Integers padding, int64_t devices) {
  const auto i = images.dimensions(), k = kernel.dimensions(), r = results.dimensions();
  try {
    const Problem problem{wanted,
                          images.element_type() == ffi::BF16 ? memory::data_type::bf16
                                                             : memory::data_type::f32,
                          {i[1], i[4], i[2], i[3]},
                          {k[4], k[3], k[1], k[2]},
                          {r[1], r[4], r[2], r[3]},
                          {strides[0], strides[1]},
                          {padding[0], padding[2]},
                          {padding[1], padding[3]},
                          bias != nullptr,
                          Threads(devices)};
    Turns::Run(devices, [&] {
      const auto plan = AllPlans().Get(problem);
      for (int64_t entry = 0; entry < i[0]; ++entry) {
        const auto at = [&](ffi::AnyBuffer& array) -> void* {
          return static_cast<char*>(array.untyped_data()) + array.size_bytes() / i[0] * entry;
        };
        plan->Run({at(images), at(kernel), at(results), bias ? at(*bias) : nullptr});
      }
    });
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what() + " (images " + Text(i) +
                                ", kernel " + Text(k) + ", results " + Text(r) + ", strides " +
                                Text(strides) + ", padding " + Text(padding) + ")");
  }
  return ffi::Error::Success();
}

// Operands come in the order images, kernel, results, without the one that is wanted.
ffi::Error Contract(ffi::AnyBuffer left, ffi::AnyBuffer right, ffi::Result<ffi::AnyBuffer> out,
                    int64_t wanted, Integers strides, Integers padding, int64_t devices) {
  switch (wanted) {
    case kImages:
      return Compute(kImages, *out, left, right, nullptr, strides, padding, devices);
    case kKernel:
      return Compute(kKernel, left, *out, right, nullptr, strides, padding, devices);
    default:
      return Compute(kResults, left, right, *out, nullptr, strides, padding, devices);
  }
}

ffi::Error Convolve(ffi::AnyBuffer images, ffi::AnyBuffer kernel, ffi::AnyBuffer bias,
                  ffi::Result<ffi::AnyBuffer> results, Integers strides, Integers padding,
                  int64_t devices) {
  return Compute(kResults, images, kernel, *results, &bias, strides, padding, devices);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmatch_contract, Contract,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("wanted")
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("padding")
                                  .Attr<int64_t>("devices"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxmatch_convolve, Convolve,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("padding")
                                  .Attr<int64_t>("devices"));

// Whether this processor's oneDNN convolves in bfloat16.
extern "C" bool jaxmatch_has_bfloat16() {
  try {
    for (const Role wanted : {kImages, kKernel, kResults}) {
      const auto type = memory::data_type::bf16;
      Plan({wanted, type, {1, 16, 4, 4}, {16, 16, 3, 3}, {1, 16, 4, 4}, {1, 1}, {1, 1}, {1, 1},
            wanted == kResults, Cores()});
    }
  } catch (const dnnl::error&) {
    return false;
  }
  return true;
}

// "oneDNN 3.2.0, 2 threads", or "error: " and the fault of the loaded library.
extern "C" const char* jaxmatch_onednn() {
  static const std::string text = [] {
    const dnnl_version_t& found = *dnnl_version();
    std::ostringstream version;
    version << "oneDNN " << found.major << "." << found.minor << "." << found.patch;
    if (found.major != DNNL_VERSION_MAJOR || found.minor < DNNL_VERSION_MINOR) {
      return "error: " + version.str() + " is older than its headers";
    }
    if (found.cpu_runtime != DNNL_RUNTIME_OMP) return "error: " + version.str() + " has no OpenMP";
    return version.str() + ", " + std::to_string(Cores()) + (Cores() > 1 ? " threads" : " thread");
  }();
  return text.c_str();
}
