// The inner loops for integers, written once. Included once an instruction set, after its header of bytes and the sizes of tiles
// in tokens, kTokens of four registers and kTokensOfOne, inside its namespace.

#include "rounding.h"
#include "tiles.h"
#include "stream_ahead.h"
#include "panel_bytes.h"
#include "project_bytes.h"
#include "accumulate_bytes.h"

constexpr Integers integers(const char* name) { return {name, round, scale, project, accumulate, restore}; }
