// The part of ONNX Runtime's C interface that this library uses, declared here so that building needs no headers of it.
//
// OrtApi is a table of functions that only ever grows at its end: a function has the same place in every release since it
// appeared. Places and types are those of onnxruntime_c_api.h (MIT, github.com/microsoft/onnxruntime); version 17 is the
// first with KernelContext_ParallelFor, the newest function used.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define MOEIFY_ORT_CALL __stdcall
#define MOEIFY_EXPORT __declspec(dllexport)
#else
#define MOEIFY_ORT_CALL
#define MOEIFY_EXPORT __attribute__((visibility("default")))
#endif

namespace moeify::ort {

inline constexpr std::uint32_t kApiVersion = 17;

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct ShapeInfo;
struct InferContext;

enum ErrorCode { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum ElementType { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt64 = 7, kFloat16 = 10, kBFloat16 = 16 };
enum Characteristic { kRequired = 0, kOptional = 1 };

using Table = void* const*;

struct ApiBase {
  Table(MOEIFY_ORT_CALL* GetApi)(std::uint32_t version);
  const char*(MOEIFY_ORT_CALL* GetVersionString)();
};

template <int place, class Result, class... Arguments>
struct Function {
  Result operator()(Table table, Arguments... arguments) const {
    return reinterpret_cast<Result(MOEIFY_ORT_CALL*)(Arguments...)>(table[place])(arguments...);
  }
};

template <int place, class... Arguments>
using Call = Function<place, Status*, Arguments...>;

inline constexpr Function<0, Status*, int, const char*> CreateStatus;
inline constexpr Call<26, const char*, CustomOpDomain**> CreateCustomOpDomain;
inline constexpr Call<27, CustomOpDomain*, const struct CustomOp*> CustomOpDomain_Add;
inline constexpr Call<28, SessionOptions*, CustomOpDomain*> AddCustomOpDomain;
inline constexpr Call<51, Value*, void**> GetTensorMutableData;
inline constexpr Call<60, const ShapeInfo*, ElementType*> GetTensorElementType;
inline constexpr Call<61, const ShapeInfo*, std::size_t*> GetDimensionsCount;
inline constexpr Call<62, const ShapeInfo*, std::int64_t*, std::size_t> GetDimensions;
inline constexpr Call<65, const Value*, ShapeInfo**> GetTensorTypeAndShape;
inline constexpr Call<86, const KernelInfo*, const char*, std::int64_t*> KernelInfoGetAttribute_int64;
inline constexpr Call<87, const KernelInfo*, const char*, char*, std::size_t*> KernelInfoGetAttribute_string;
inline constexpr Call<88, const KernelContext*, std::size_t*> KernelContext_GetInputCount;
inline constexpr Call<90, const KernelContext*, std::size_t, const Value**> KernelContext_GetInput;
inline constexpr Call<91, KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**> KernelContext_GetOutput;
inline constexpr Function<93, void, Status*> ReleaseStatus;
inline constexpr Function<99, void, ShapeInfo*> ReleaseTensorTypeAndShapeInfo;
inline constexpr Call<274, const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*>
    KernelContext_ParallelFor;

// An operator as ONNX Runtime sees it, as of version 17. Null members are not asked for.
struct CustomOp {
  std::uint32_t version;
  void*(MOEIFY_ORT_CALL* CreateKernel)(const CustomOp*, Table, const KernelInfo*);
  const char*(MOEIFY_ORT_CALL* GetName)(const CustomOp*);
  const char*(MOEIFY_ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  ElementType(MOEIFY_ORT_CALL* GetInputType)(const CustomOp*, std::size_t);
  std::size_t(MOEIFY_ORT_CALL* GetInputTypeCount)(const CustomOp*);
  ElementType(MOEIFY_ORT_CALL* GetOutputType)(const CustomOp*, std::size_t);
  std::size_t(MOEIFY_ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(MOEIFY_ORT_CALL* KernelCompute)(void*, KernelContext*);
  void(MOEIFY_ORT_CALL* KernelDestroy)(void*);
  Characteristic(MOEIFY_ORT_CALL* GetInputCharacteristic)(const CustomOp*, std::size_t);
  Characteristic(MOEIFY_ORT_CALL* GetOutputCharacteristic)(const CustomOp*, std::size_t);
  int(MOEIFY_ORT_CALL* GetInputMemoryType)(const CustomOp*, std::size_t);
  int(MOEIFY_ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(MOEIFY_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(MOEIFY_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(MOEIFY_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  Status*(MOEIFY_ORT_CALL* CreateKernelV2)(const CustomOp*, Table, const KernelInfo*, void**);
  Status*(MOEIFY_ORT_CALL* KernelComputeV2)(void*, KernelContext*);
  Status*(MOEIFY_ORT_CALL* InferOutputShapeFn)(const CustomOp*, InferContext*);
  int(MOEIFY_ORT_CALL* GetStartVersion)(const CustomOp*);
  int(MOEIFY_ORT_CALL* GetEndVersion)(const CustomOp*);
};

}  // namespace moeify::ort
