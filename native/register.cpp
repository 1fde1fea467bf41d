// The entry point: RegisterCustomOps puts moeify::MoE into a session, once for each type of x and weights, and moeify::QMoE.
#include <exception>
#include <string>

#include "operator.h"
#include "ort_api.h"

namespace moeify {
namespace {

struct MoE : ort::CustomOp {
  const Signature* signature;
  Stored stored;
};

ort::ElementType element(Stored stored) {
  return stored == Stored::float32 ? ort::kFloat : stored == Stored::float16 ? ort::kFloat16 : ort::kBFloat16;
}

ort::ElementType MOEIFY_ORT_CALL input_type(const ort::CustomOp* op, std::size_t i) {
  const auto& self = *static_cast<const MoE*>(op);
  const Input input = self.signature->order[i];
  if (input == kOffsets || input == kK) return ort::kInt64;
  if (input == kThreshold || input == kSelectionBias) return ort::kFloat;
  if (self.signature == &kQMoE && (input == kUp || input == kGate || input == kDown)) return ort::kUint8;
  return element(self.stored);
}

// What went wrong, as a status; nothing is thrown over the border.
template <class F>
ort::Status* guarded(ort::Table api, const char* name, F f) {
  try {
    f();
    return nullptr;
  } catch (const StatusError& error) {
    return error.status;
  } catch (const InputError& error) {
    return ort::CreateStatus(api, ort::kInvalidArgument, ("moeify::" + std::string(name) + ": " + error.what()).c_str());
  } catch (const std::exception& error) {
    return ort::CreateStatus(api, ort::kRuntimeException, error.what());
  } catch (...) {
    return ort::CreateStatus(api, ort::kRuntimeException, "moeify::MoE: unknown error");
  }
}

struct Kernel {
  ort::Table api;
  const char* name;
  Operator node;
};

ort::Status* MOEIFY_ORT_CALL create(const ort::CustomOp* op, ort::Table api, const ort::KernelInfo* info, void** kernel) {
  const auto& self = *static_cast<const MoE*>(op);
  return guarded(api, self.signature->name, [=, &self] {
    *kernel = nullptr;
    *kernel = new Kernel{api, self.signature->name, Operator(api, info, *self.signature, self.stored)};
  });
}

ort::Status* MOEIFY_ORT_CALL run(void* kernel, ort::KernelContext* context) {
  auto* self = static_cast<Kernel*>(kernel);
  return guarded(self->api, self->name, [=] { self->node.run(context); });
}

MoE make(const Signature& signature, Stored stored) {
  MoE op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp* self) { return static_cast<const MoE*>(self)->signature->name; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const ort::CustomOp* self) {
    return static_cast<std::size_t>(static_cast<const MoE*>(self)->signature->count);
  };
  op.GetOutputType = [](const ort::CustomOp* self, std::size_t) { return element(static_cast<const MoE*>(self)->stored); };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const ort::CustomOp* self, std::size_t i) {
    return i < static_cast<std::size_t>(static_cast<const MoE*>(self)->signature->required) ? ort::kRequired : ort::kOptional;
  };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, std::size_t) { return ort::kRequired; };
  op.GetInputMemoryType = [](const ort::CustomOp*, std::size_t) { return 0; };
  op.GetVariadicInputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = run;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 1; };
  op.signature = &signature;
  op.stored = stored;
  return op;
}

// Sessions keep pointers to domain and operators, so that both live as long as the library; there is one for all.
ort::CustomOpDomain* domain(ort::Table api) {
  static const MoE ops[] = {make(kMoE, Stored::float32), make(kMoE, Stored::float16), make(kMoE, Stored::bfloat16),
                              make(kQMoE, Stored::float32)};
  static ort::CustomOpDomain* const made = [api] {
    ort::CustomOpDomain* domain = nullptr;
    ort::Status* status = ort::CreateCustomOpDomain(api, "moeify", &domain);
    for (const MoE& op : ops)
      if (!status) status = ort::CustomOpDomain_Add(api, domain, &op);
    if (status) throw StatusError{status};
    return domain;
  }();
  return made;
}

}  // namespace
}  // namespace moeify

extern "C" MOEIFY_EXPORT moeify::ort::Status* MOEIFY_ORT_CALL RegisterCustomOps(moeify::ort::SessionOptions* options,
                                                                                const moeify::ort::ApiBase* base) {
  using namespace moeify;
  const ort::Table api = base->GetApi(ort::kApiVersion);
  if (!api) return nullptr;  // older than version 17: without a table not even an error can be made; the body runs
  return guarded(api, "MoE", [=] {
    ort::Status* status = ort::AddCustomOpDomain(api, options, domain(api));
    if (status) throw StatusError{status};
  });
}
