// The inner loops for integers, written once. Included once an instruction set, after its header of bytes and the size kTokens,
// inside its namespace.

#include "rounding.h"
#include "tiles.h"
#include "stream_ahead.h"
#include "project_bytes.h"
#include "accumulate_bytes.h"

constexpr Integers integers(const char* name) { return {name, round, scale, project, accumulate, restore}; }
