/* What the drivers of linear and moe share. */
#pragma once

#include "core/parallel.h"

/* The fastest kernel for T of the tokens of a step that the precision allows. */
cg_linear *cg_pick_linear(const cg_matrix *w, int64_t T, int64_t step, cg_precision precision);
/* The bytes of packed activations, and of each thread's work, that suffice for up to T tokens, in one product or in
   several, whichever kernels are picked. */
void cg_product_bytes(const cg_matrix *w, int64_t T, int64_t *packed, int64_t *work);
/* CG_BAD_SHAPE or CG_BAD_DTYPE where no kernel takes such a matrix. */
cg_status cg_check_matrix(const cg_matrix *w);
/* w, scales, bias and K of the product by one expert's matrix (a plain matrix is expert 0). */
cg_product cg_product_of(const cg_matrix *w, int64_t expert);
/* Outputs n0 .. n1-1 of a product by a kernel that was picked for weights of that dtype. */
void cg_run_panel(const cg_linear *kernel, cg_dtype dtype, const cg_product *p, int64_t n0, int64_t n1);
/* The rows of a task of a product of T tokens. Each thread gets several tasks, so that none waits for a slow core. */
int64_t cg_panel_rows(const cg_matrix *w, int64_t T, int threads);
/* The number of these tasks. */
int64_t cg_panels(const cg_matrix *w, int64_t T, int threads);
