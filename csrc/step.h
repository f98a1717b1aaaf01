// The verbs of a correction, as every device takes them. All arrays are flat over the rows (l, i)
// of all pairs, skipped ones included, and modality first: index m * rows + row.
#pragma once

#include <cstdint>

#include "table.h"

namespace ragrad {

// Observe: one pass over gradients, weights and history.
struct Observation {
  const double* step_size;  // (2, rows), w of Eq. 4; null without history
  double* gram;             // (rows, 3): |g_rgb|^2, |g_ir|^2, g_rgb . g_ir
  double* g_theta;          // (2, rows): g . theta; 0 where no weight is read
  double* deviation;        // (2, rows): mean (g - mu)^2, mu before this step; 0 without history
  bool* observed;           // (2, rows): the row is present and finite; if not, 0 for the two above
};

// Apply: [g_rgb; g_ir] <- M [g_rgb; g_ir], row by row. A gradient row whose row of M is that of the
// identity keeps its bytes.
struct Mixing {
  const double* mix;  // (rows, 2, 2), M of every row; finite
};

// RaGrad's own rule.
struct Rule {
  bool dual;   // Eq. 6; otherwise every negative cosine conflicts (Table 7)
  bool blend;  // Eq. 8-10; otherwise Eq. 8 alone (Table 7)
  double eps;  // guards Eq. 8 and 10 against 0/0
};

// Decide and apply in one: Eq. 6-10 by a given reliability.
struct Correction {
  Rule rule;
  const float* reliability;  // (2, rows), R of Eq. 5
  const double* gram;        // (rows, 3) from an observation of the same gradients; null: not given
  // The record. Rows of skipped pairs get zeros.
  float* cosine;    // (rows,); nan throughout a layer that holds an inf or nan
  float* gap;       // (rows,)
  bool* mask;       // (rows,)
  float* strength;  // (rows,), lambda of Eq. 10 on conflict rows, 0 elsewhere
};

}  // namespace ragrad
