// A passage: tokens that a model writes by itself, a step and a choice in turn, in one call.
//
// Between two tokens whoever calls token by token needs the interpreter's lock several times, and waits for it while a
// screen is drawn. Nothing here does.
#pragma once

#include <cstdint>

#include "choosing.h"
#include "model.h"

namespace exl2 {

// Runs steps until one of the limits is reached; tokens (count) takes what was chosen after each of them. The last may
// be kUnsure: then its logits are there to be looked at. Returns the number of steps; if there is none, how the first
// ended (model.h). first: T is 1; cos and sin have rows for all tokens, logits (V) are those of the last step.
int64_t write_passage(Model& model, const StepRequest& first, const Choosing& choosing, int64_t* tokens);

}  // namespace exl2
