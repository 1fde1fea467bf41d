// The part of ONNX Runtime's C interface that next_token.cpp uses, beside that of native/ort_api.h: places and types are those of
// onnxruntime_c_api.h. A program that has ONNX Runtime's own headers includes those instead.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "ort_api.h"

namespace moeify::ort {

struct Env;
struct Session;
struct RunOptions;
struct MemoryInfo;
struct Allocator;
struct TypeInfo;

inline constexpr int kErrors = 3;          // ORT_LOGGING_LEVEL_ERROR
inline constexpr int kArenaAllocator = 1;  // OrtArenaAllocator
inline constexpr int kDefaultMemory = 0;   // OrtMemTypeDefault

inline constexpr Function<2, const char*, const Status*> GetErrorMessage;
inline constexpr Call<3, int, const char*, Env**> CreateEnv;
inline constexpr Call<7, const Env*, const char*, const SessionOptions*, Session**> CreateSession;
inline constexpr Call<9, Session*, const RunOptions*, const char* const*, const Value* const*, std::size_t, const char* const*,
                      std::size_t, Value**>
    Run;
inline constexpr Call<10, SessionOptions**> CreateSessionOptions;
inline constexpr Call<29, SessionOptions*, const char*, void**> RegisterCustomOpsLibrary;
inline constexpr Call<30, const Session*, std::size_t*> SessionGetInputCount;
inline constexpr Call<33, const Session*, std::size_t, TypeInfo**> SessionGetInputTypeInfo;
inline constexpr Call<36, const Session*, std::size_t, Allocator*, char**> SessionGetInputName;
inline constexpr Call<37, const Session*, std::size_t, Allocator*, char**> SessionGetOutputName;
inline constexpr Call<49, const MemoryInfo*, void*, std::size_t, const std::int64_t*, std::size_t, ElementType, Value**>
    CreateTensorWithDataAsOrtValue;
inline constexpr Call<55, const TypeInfo*, const ShapeInfo**> CastTypeInfoToTensorInfo;
inline constexpr Call<69, int, int, MemoryInfo**> CreateCpuMemoryInfo;
inline constexpr Call<76, Allocator*, void*> AllocatorFree;
inline constexpr Call<78, Allocator**> GetAllocatorWithDefaultOptions;

// The functions of a library that is opened now. It stays open as long as the process.
inline Table open(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  auto base = reinterpret_cast<const ApiBase*(MOEIFY_ORT_CALL*)()>(dlsym(library, "OrtGetApiBase"));
  if (!base) throw std::runtime_error(std::string(path) + ": is not ONNX Runtime");
  const Table api = base()->GetApi(kApiVersion);
  if (!api) throw std::runtime_error(std::string(path) + ": is older than ONNX Runtime 1.17");
  return api;
}

inline void check(Table api, Status* status) {
  if (!status) return;
  const std::string message = GetErrorMessage(api, status);
  ReleaseStatus(api, status);
  throw std::runtime_error(message);
}

// Something of ONNX Runtime that is released in the end, by the function in that place.
template <class T, int place>
struct Release {
  Table api;
  void operator()(T* held) const { Function<place, void, T*>{}(api, held); }
};
template <class T, int place>
using Owned = std::unique_ptr<T, Release<T, place>>;

using OwnedEnv = Owned<Env, 92>;
using OwnedMemoryInfo = Owned<MemoryInfo, 94>;
using OwnedSession = Owned<Session, 95>;
using OwnedValue = Owned<Value, 96>;
using OwnedTypeInfo = Owned<TypeInfo, 98>;
using OwnedShapeInfo = Owned<ShapeInfo, 99>;
using OwnedOptions = Owned<SessionOptions, 100>;

// Calls a function whose last argument is where it puts what it made.
template <class Owner, class F, class... Arguments>
Owner made(Table api, const F& function, Arguments... arguments) {
  typename Owner::pointer found = nullptr;
  check(api, function(api, arguments..., &found));
  return Owner(found, {api});
}

}  // namespace moeify::ort
