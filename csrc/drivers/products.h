/* What the drivers of linear and moe share. */
#ifndef CG_PRODUCTS_H
#define CG_PRODUCTS_H

#include "core/parallel.h"

/* The kernel for T tokens: a tile kernel where one exists, pays and is allowed. */
cg_linear *cg_pick_linear(const cg_matrix *w, int64_t T, cg_precision precision);
/* The bytes of packed activations and of work (of each thread) that up to T tokens take at most, in one product or in
   several, whichever kernels are picked. */
void cg_product_bytes(const cg_matrix *w, int64_t T, int64_t *packed, int64_t *work);
/* A shape or dtype no kernel takes. */
cg_status cg_check_matrix(const cg_matrix *w);
/* w, scales, bias and K of one expert's product (a plain matrix is expert 0). */
cg_product cg_product_of(const cg_matrix *w, int64_t expert);
/* Rows per task of a product of T tokens: several tasks a thread, so that a slow core holds nobody up. */
int64_t cg_panel_rows(const cg_matrix *w, int64_t T, int threads);
/* And how many tasks that makes. */
int64_t cg_panels(const cg_matrix *w, int64_t T, int threads);

#endif
