// A node of moeify::MoE or QMoE: made once for its attributes, run by any number of threads at once.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "compute.h"
#include "inputs.h"
#include "ort_api.h"

namespace moeify {

// Something failed inside ONNX Runtime: its own status, to be handed back.
struct StatusError {
  ort::Status* status;
};

// All that a call needs beside its inputs.
struct Storage {
  Copies copies;
  std::vector<float> y;  // of an output of 16 bits, as float32
  Scratch scratch;
};

class Operator {
 public:
  // Raises InputError for attributes that are not in the tables.
  Operator(ort::Table api, const ort::KernelInfo* info, const Signature& signature, Stored stored);

  // Raises InputError for inputs that do not fit together.
  void run(ort::KernelContext* context);

 private:
  Inputs read(const ort::KernelContext* context) const;
  std::unique_ptr<Storage> take();
  void give_back(std::unique_ptr<Storage> storage);

  const ort::Table api_;
  const Signature& signature_;
  const Stored stored_;
  Attributes attributes_;
  std::atomic<int> threads_{1};
  std::mutex mutex_;
  std::vector<std::unique_ptr<Storage>> free_;
};

}  // namespace moeify
