// The entry point: RegisterCustomOps puts moeify::MoE version 1 into a session, once for each type of x and weights.
#include <exception>

#include "operator.h"
#include "ort_api.h"

namespace moeify {
namespace {

struct MoE : ort::CustomOp {
  Stored stored;
};

ort::ElementType element(Stored stored) {
  return stored == Stored::float32 ? ort::kFloat : stored == Stored::float16 ? ort::kFloat16 : ort::kBFloat16;
}

ort::ElementType MOEIFY_ORT_CALL input_type(const ort::CustomOp* op, std::size_t i) {
  if (i == kOffsets || i == kK) return ort::kInt64;
  if (i == kThreshold || i == kSelectionBias) return ort::kFloat;
  return element(static_cast<const MoE*>(op)->stored);
}

// What went wrong, as a status; nothing is thrown over the border.
template <class F>
ort::Status* guarded(ort::Table api, F f) {
  try {
    f();
    return nullptr;
  } catch (const StatusError& error) {
    return error.status;
  } catch (const InputError& error) {
    return ort::CreateStatus(api, ort::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return ort::CreateStatus(api, ort::kRuntimeException, error.what());
  } catch (...) {
    return ort::CreateStatus(api, ort::kRuntimeException, "moeify::MoE: unknown error");
  }
}

struct Kernel {
  ort::Table api;
  Operator node;
};

ort::Status* MOEIFY_ORT_CALL create(const ort::CustomOp* op, ort::Table api, const ort::KernelInfo* info, void** kernel) {
  return guarded(api, [=] {
    *kernel = nullptr;
    *kernel = new Kernel{api, Operator(api, info, static_cast<const MoE*>(op)->stored)};
  });
}

ort::Status* MOEIFY_ORT_CALL run(void* kernel, ort::KernelContext* context) {
  auto* self = static_cast<Kernel*>(kernel);
  return guarded(self->api, [=] { self->node.run(context); });
}

MoE make(Stored stored) {
  MoE op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp*) { return "MoE"; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const ort::CustomOp*) -> std::size_t { return kInputs; };
  op.GetOutputType = [](const ort::CustomOp* self, std::size_t) { return element(static_cast<const MoE*>(self)->stored); };
  op.GetOutputTypeCount = [](const ort::CustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, std::size_t i) {
    return i < kRequiredInputs ? ort::kRequired : ort::kOptional;
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
  op.stored = stored;
  return op;
}

// Sessions keep pointers to domain and operators, so that both live as long as the library; there is one for all.
ort::CustomOpDomain* domain(ort::Table api) {
  static const MoE ops[] = {make(Stored::float32), make(Stored::float16), make(Stored::bfloat16)};
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
  return guarded(api, [=] {
    ort::Status* status = ort::AddCustomOpDomain(api, options, domain(api));
    if (status) throw StatusError{status};
  });
}
