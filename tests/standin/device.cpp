// A CUDA device (or MPS, with STANDIN_MPS) on torch's CPU build: memory of the host, and every operator computed by its
// CPU kernel on that memory.
//
// An operator on the device's tensors arrives at `on_host`. It refuses CPU tensors among them as a GPU does, calls the CPU
// kernel on views of the same memory, and gives its results back as tensors of the device. Whatever a GPU would have to
// wait for is counted by operator. Streams and events exist in name only. MPS has one device and no float64. `device.py`
// builds and loads this file.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/set_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

#ifdef STANDIN_MPS
#define DEVICE MPS
#else
#define DEVICE CUDA
#endif
#define REGISTER(guard) REGISTER_FOR(DEVICE, guard)
#define REGISTER_FOR(device, guard) C10_REGISTER_GUARD_IMPL(device, guard)
#define OPERATORS(of) OPERATORS_FOR(of, DEVICE)
#define OPERATORS_FOR(of, device) TORCH_LIBRARY_IMPL(of, device, library)

using at::IValue;
using at::Tensor;
using torch::jit::Stack;

namespace {

constexpr c10::DeviceType kDevice = c10::DeviceType::DEVICE;
constexpr c10::DispatchKey kKey = c10::DispatchKey::DEVICE;
constexpr bool kIsMps = kDevice == c10::DeviceType::MPS;

bool is_ours(const Tensor& tensor) { return tensor.device().type() == kDevice; }

// Devices: two, so that tests may tell the current one from another. MPS has one.

constexpr c10::DeviceIndex kDevices = kIsMps ? 1 : 2;
thread_local c10::DeviceIndex current = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kDevice;
  c10::DeviceType type() const override { return static_type; }
  c10::Device getDevice() const override { return {static_type, current}; }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};
REGISTER(Guard)

struct Memory final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* data = std::aligned_alloc(64, (bytes / 64 + 1) * 64);
    return {data, data, &std::free, {kDevice, current}};
  }
  at::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;

// Counts: operators that would be kernels, and what makes the host wait for the device, by operator.

std::mutex counting;
std::map<std::string, long> launches, waits, moved_bytes;
void (*on_wait)() = nullptr;  // asks who waits, in the thread that does

void count(std::map<std::string, long>& counter, const std::string& name, long times = 1) {
  std::lock_guard<std::mutex> lock(counting);
  counter[name] += times;
}

void count_wait(const std::string& name) {
  count(waits, name);
  if (on_wait) on_wait();
}

// What answers with a number, or has a result whose size depends on the values.
const std::set<std::string> kWaits = {
    "aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave", "aten::bincount"};

bool waits_for_device(const std::string& name, const Stack& arguments) {
  if (kWaits.count(name)) return true;
  if (name != "aten::_index_put_impl_" || arguments[2].toTensor().numel() == 1) return false;
  for (const auto& index : arguments[1].toListRef()) {  // by a mask: its elements are counted first, as `index` does
    if (index.isTensor() && index.toTensor().defined() && index.toTensor().scalar_type() == at::kBool) return true;
  }
  return false;
}

// Operators

c10::ScalarType supported(c10::ScalarType dtype) {
  TORCH_CHECK_TYPE(!(kIsMps && dtype == at::kDouble), "the MPS framework doesn't support float64, use float32 instead");
  return dtype;
}

Tensor with_layout_of(const Tensor& like, Tensor tensor) {
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

c10::Storage shared(const c10::Storage& storage, c10::Device device, c10::Allocator* allocator) {
  auto* data = storage.mutable_data();
  auto* owner = new c10::Storage(storage);
  at::DataPtr pointer(data, owner, [](void* held) { delete static_cast<c10::Storage*>(held); }, device);
  return c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(pointer), allocator, /*resizable=*/true);
}

Tensor on_cpu(const Tensor& tensor) {
  if (!tensor.defined() || !is_ours(tensor)) return tensor;
  auto storage = shared(tensor.storage(), at::kCPU, c10::GetCPUAllocator());
  const c10::DispatchKeySet keys(c10::DispatchKey::CPU);
  return with_layout_of(tensor, at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, tensor.dtype()));
}

Tensor on_device(const Tensor& tensor) {
  supported(tensor.scalar_type());
  auto storage = shared(tensor.storage(), {kDevice, current}, &memory);
  const c10::DispatchKeySet keys(kKey);
  return with_layout_of(tensor, at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, tensor.dtype()));
}

// A view has its base's keys: in inference mode those of a tensor made outside of it.
Tensor view_on_device(const Tensor& base, const Tensor& tensor) {
  auto storage = base.storage();
  return with_layout_of(
      tensor,
      at::detail::make_tensor<c10::TensorImpl>(
          c10::TensorImpl::VIEW, std::move(storage), base.key_set(), tensor.dtype()));
}

// The device's tensors of one call, and their views on the host.
struct Call {
  std::vector<std::pair<Tensor, Tensor>> known;

  Tensor view(const Tensor& tensor) {
    if (!tensor.defined() || !is_ours(tensor)) return tensor;
    for (const auto& [device, host] : known)
      if (device.is_same(tensor)) return host;
    known.emplace_back(tensor, on_cpu(tensor));
    return known.back().second;
  }

  // An argument, a view of one, or new memory.
  Tensor result(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (const auto& [device, host] : known) {
      if (host.is_same(tensor)) return device;
      if (host.storage().unsafeGetStorageImpl() == tensor.storage().unsafeGetStorageImpl())
        return view_on_device(device, tensor);
    }
    return on_device(tensor);
  }

  // Arguments that the kernel resized, as it does with `out`.
  void write_back() {
    for (auto& [device, host] : known) {
      if (device.storage().data() != host.storage().data() || device.storage().nbytes() != host.storage().nbytes()) {
        auto moved = shared(host.storage(), device.device(), &memory);
        auto* storage = device.storage().unsafeGetStorageImpl();
        storage->set_data_ptr_noswap(std::move(moved.unsafeGetStorageImpl()->mutable_data_ptr()));
        storage->set_nbytes(host.storage().nbytes());
      }
      if (device.sizes() != host.sizes() || device.strides() != host.strides())
        device.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }
};

template <class Change>
IValue changed(const IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(change(tensor));
    return list;
  }
  if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::ListType) {  // of gathered tensors
    c10::List<c10::List<Tensor>> lists;
    for (const IValue& list : value.toList()) {
      if (!list.isTensorList()) return value;
      lists.push_back(changed(list, change).toTensorList());
    }
    return lists;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const auto& tensor : value.toOptionalTensorVector())
      list.push_back(tensor.has_value() ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
    return list;
  }
  return value;
}

template <class See>
void each_tensor(const IValue& value, See see) {
  changed(value, [&](const Tensor& tensor) {
    if (tensor.defined()) see(tensor);
    return tensor;
  });
}

// Kernels take CPU tensors of no dimension, and indices on the CPU.
void refuse_mixed(const std::string& name, const Stack& arguments) {
  const bool indexes = name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
  bool cpu = false, ours = false;
  for (size_t i = 0; i < arguments.size(); i++) {
    if (indexes && i == 1) continue;
    each_tensor(arguments[i], [&](const Tensor& tensor) {
      if (tensor.dim() > 0) (is_ours(tensor) ? ours : cpu) = true;
    });
  }
  TORCH_CHECK(
      !(cpu && ours), "Expected all tensors to be on the same device, but ", name, " has some on ",
      c10::DeviceTypeName(kDevice, true), " and on cpu");
}

std::optional<c10::Device> device_of(const Stack& arguments) {
  std::optional<c10::Device> found;
  for (const auto& argument : arguments) {
    if (argument.isDevice() && argument.toDevice().type() == kDevice) found = argument.toDevice();
    each_tensor(argument, [&](const Tensor& tensor) {
      if (!found && is_ours(tensor)) found = tensor.device();
    });
  }
  return found;
}

// Under autocast a GPU's softmax reads float16 and writes float32; the CPU's has no such kernel.
void widen_softmax(const std::string& name, Stack& arguments) {
  if ((name != "aten::_softmax" && name != "aten::_log_softmax") || !arguments[2].toBool()) return;
  arguments[0] = arguments[0].toTensor().to(at::kFloat);
  arguments[2] = false;
}

void on_host(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.operator_name().name;
  const auto first = stack->size() - schema.arguments().size();
  Stack arguments(stack->begin() + first, stack->end());
  refuse_mixed(name, arguments);
  Call call;
  const c10::OptionalDeviceGuard guard(device_of(arguments));
  for (auto& argument : arguments) {
    if (argument.isDevice() && argument.toDevice().type() == kDevice) argument = c10::Device(at::kCPU);
    argument = changed(argument, [&](const Tensor& tensor) { return call.view(tensor); });
  }
  const bool is_view = !schema.returns().empty() && schema.returns()[0].alias_info() != nullptr &&
      !schema.returns()[0].alias_info()->isWrite();
  if (waits_for_device(name, arguments)) count_wait(name);
  long bytes = 0;
  const auto add = [&](const IValue& value) {
    each_tensor(value, [&](const Tensor& tensor) { bytes += static_cast<long>(tensor.nbytes()); });
  };
  for (const auto& argument : arguments) add(argument);
  widen_softmax(name, arguments);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &arguments);
  call.write_back();
  for (const auto& result : arguments) add(result);
  if (!is_view) {
    count(launches, name);
    count(moved_bytes, name, bytes);
  }
  stack->resize(first);
  for (const auto& result : arguments)
    stack->push_back(changed(result, [&](const Tensor& tensor) { return call.result(tensor); }));
}

Tensor empty(
    c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(
      size, &memory, c10::DispatchKeySet(kKey), supported(c10::dtype_or_default(dtype)), format);
}

Tensor empty_strided(
    c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      size, stride, &memory, c10::DispatchKeySet(kKey), supported(c10::dtype_or_default(dtype)));
}

// A copy waits for the device unless it is on it, or was asked not to.
Tensor& copy(Tensor& to, const Tensor& from, bool non_blocking) {
  if (is_ours(to) && is_ours(from)) {
    count(launches, "aten::copy_");
    count(moved_bytes, "aten::copy_", static_cast<long>(to.nbytes() + from.nbytes()));
  } else if (!non_blocking && to.numel() > 0)
    count_wait(is_ours(to) ? "copy to the device" : "copy to the host");
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  Tensor written = to;
  return copy(written, from, non_blocking);
}

void record_stream(Tensor&, c10::Stream) {}
bool is_pinned(const Tensor&, std::optional<at::Device>) { return false; }

int64_t plain_attention(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>, bool) {
  return 0;  // SDPBackend::math
}

}  // namespace

namespace at {
// torch looks each of them up by its name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex device) const override { current = device; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override { return std::exchange(current, device); }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return device < 0 ? current : exchangeDevice(device);
  }
  DeviceIndex deviceCount() const override { return kDevices; }
  int getNumGPUs() const override { return kDevices; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex) const override { return at::make_generator<at::CPUGeneratorImpl>(); }
};

struct MPSHooks final : MPSHooksInterface {
  void init() const override {}
  bool hasMPS() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isOnMacOSorNewer(unsigned, unsigned) const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  DeviceIndex getCurrentDevice() const override { return current; }
  Allocator* getMPSDeviceAllocator() const override { return &memory; }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex) const override { return at::make_generator<at::CPUGeneratorImpl>(); }
};

#ifdef STANDIN_MPS
REGISTER_MPS_HOOKS(MPSHooks);
#else
REGISTER_CUDA_HOOKS(CUDAHooks);
#endif
}  // namespace at

OPERATORS(_) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_host>());
}

OPERATORS(aten) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy);
  library.impl("_copy_from", &copy_from);
  library.impl("record_stream", &record_stream);
  library.impl("is_pinned", &is_pinned);
  // These change which memory a tensor has.
  library.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  library.impl("set_.source_Storage", [](Tensor& tensor, at::Storage source) -> Tensor& {
    const int64_t elements = source.nbytes() / tensor.element_size();
    return at::native::set_storage_cpu_(tensor, std::move(source), 0, {elements}, {});
  });
  library.impl("set_.source_Tensor", [](Tensor& tensor, const Tensor& source) -> Tensor& {
    return at::native::set_storage_cpu_(
        tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
  });
}

#ifdef STANDIN_MPS
// What torch's CPU build knows of no kernel for on MPS.
namespace {
Tensor attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask, double dropout,
    bool causal, std::optional<double> scale, bool grouped) {
  auto bias = mask;
  if (mask.has_value() && mask->scalar_type() == at::kBool)
    bias = at::zeros(mask->sizes(), query.options()).masked_fill_(mask->logical_not(), -INFINITY);
  return std::get<0>(
      at::_scaled_dot_product_attention_math(query, key, value, bias, dropout, causal, std::nullopt, scale, grouped));
}

Tensor convolution(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups) {
  count(launches, "aten::convolution");
  return on_device(at::convolution(
      on_cpu(input), on_cpu(weight), on_cpu(bias.value_or(Tensor())), stride, padding, dilation, transposed,
      output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> wanted) {
  count(launches, "aten::convolution_backward");
  const std::vector<int64_t> biases{gradient.size(1)};
  const auto [of_input, of_weight, of_bias] = at::convolution_backward(
      on_cpu(gradient), on_cpu(input), on_cpu(weight), biases, stride, padding, dilation, transposed, output_padding,
      groups, wanted);
  const auto given = [](const Tensor& tensor) { return tensor.defined() ? on_device(tensor) : tensor; };
  return {given(of_input), given(of_weight), given(of_bias)};
}
}  // namespace

TORCH_LIBRARY_IMPL(aten, MPS, library) {
  library.impl("scaled_dot_product_attention", &attention);
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
}
TORCH_LIBRARY_IMPL(aten, AutogradMPS, library) { library.impl("scaled_dot_product_attention", &attention); }
#endif

namespace {
struct Silent final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

struct Install {
  torch::Library collectives{torch::Library::IMPL, "c10d", kKey, __FILE__, __LINE__};

  Install() {
    at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&plain_attention);
    at::SetAllocator(kDevice, &memory);
    // Distributed training times its steps with the CPU's clock.
    c10d::TimerRegistry()->Register(
        kDevice, [](c10::Device device) { return c10d::TimerRegistry()->Create(c10::kCPU, device); });
    // gloo has no part for GPUs in this build: its processes exchange the host's memory.
    Silent silent;  // of torch's own kernels, which are replaced
    c10::WarningUtils::WarningHandlerGuard guard(&silent);
    for (const char* name :
         {"allreduce_", "allreduce_coalesced_", "broadcast_", "allgather_", "_allgather_base_", "reduce_", "gather_",
          "scatter_", "reduce_scatter_", "_reduce_scatter_base_", "send", "recv_", "alltoall_base_"})
      collectives.impl(name, torch::CppFunction::makeFromBoxedFunction<&on_host>());
  }
} install;

std::string as_lines(std::map<std::string, long>& counter) {
  std::lock_guard<std::mutex> lock(counting);
  std::string lines;
  for (const auto& [name, times] : counter) lines += name + "\t" + std::to_string(times) + "\n";
  counter.clear();
  return lines;
}
}  // namespace

extern "C" int standin_current_device() { return current; }
extern "C" void standin_on_wait(void (*listener)()) { on_wait = listener; }
extern "C" void standin_set_device(int device) { current = static_cast<c10::DeviceIndex>(device); }

// What was counted since the last call, a line an operator; valid until the next.
extern "C" const char* standin_launches() {
  static std::string lines;
  lines = as_lines(launches);
  return lines.c_str();
}
extern "C" const char* standin_bytes() {
  static std::string lines;
  lines = as_lines(moved_bytes);
  return lines.c_str();
}
extern "C" const char* standin_waits() {
  static std::string lines;
  lines = as_lines(waits);
  return lines.c_str();
}
