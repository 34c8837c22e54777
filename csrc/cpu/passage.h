// A passage: tokens that a model writes by itself, a step and a choice in turn, in one call.
//
// Between two tokens whoever calls token by token needs the interpreter's lock several times, and waits for it while a
// screen is drawn. Nothing here does.
#pragma once

#include <cstdint>

#include "model.h"
#include "sampler.h"

namespace exl2 {

struct PassageRequest {
  StepRequest step;   // of the first token: T is 1; cos and sin have rows for all tokens, logits (V) of the last step
  int64_t vocab;      // tokens from here on are never chosen
  SeenTokens seen;    // before the first choice; those that are chosen join them
  bool uses_history;  // false: no penalty is on, and nothing joins
  SamplerSettings settings;
  const double* uniforms;   // (count), one per choice
  const int64_t* stop_ids;  // the passage ends with the first of these
  int64_t stops;
  int64_t count;   // tokens at most, at least 1
  double seconds;  // no step begins later than that
};

// Runs steps until one of the limits is reached; tokens (count) takes what was chosen after each of them. The last may
// be kUnsure: then its logits are there to be looked at. Returns the number of steps, 0 if it was cancelled in the
// first.
int64_t write_passage(Model& model, const PassageRequest& request, int64_t* tokens);

}  // namespace exl2
