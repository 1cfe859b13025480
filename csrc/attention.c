/* attention: out[t][h] = sum over visible p of softmax(q[t][h] . k[p] * scale, sink[h]) v[p], for up to 8 (token, head)
   rows that share key/value head g. Shapes and masks in cgpt.h, cg_attention.
   Online softmax, one step per block of 32 absolute positions: a sink is a first key with score sink[h] and value 0.
   f32 throughout; a row's order of summation depends on its own position and window only. Parallel over (g, rows). */

enum { ATT_VECS = CG_KV_BLOCK / CG_LANES, ATT_ROWS = CG_LANES == 16 ? 8 : 4 };

typedef struct {
    const float *q;
    float *out;
    int64_t first, last;              /* visible positions */
    float top, sum;                   /* running maximum and denominator */
    float p[CG_KV_BLOCK];             /* scores, then probabilities, of the block at hand */
    float acc[CG_MAX_HEAD_DIM];
} att_row;

static inline void att_locate(const cg_attention *a, int64_t block, int64_t g, const float **k, const float **v) {
    int64_t fresh = a->first_fresh / CG_KV_BLOCK;
    const cg_kv *kv = block < fresh ? &a->past : &a->fresh;
    int64_t at = ((block < fresh ? block : block - fresh) % kv->blocks) * a->G + g;
    *k = kv->k + at * a->D * CG_KV_BLOCK;
    *v = kv->v + at * CG_KV_BLOCK * cg_round_up(a->D, CG_V_ALIGN);
}

/* p[m][j] = q[m] . k[j] for the 32 keys of a block [D, 32]; a pair of vectors of keys at a time. */
CG_INLINE void att_scores(const int M, att_row *row, const float *k, int64_t D) {
    for (int c = 0; c < CG_KV_BLOCK; c += 2 * CG_LANES) {
        vf s[ATT_ROWS][2];
        for (int m = 0; m < M; m++) s[m][0] = s[m][1] = vf_set(0.f);
        for (int64_t d = 0; d < D; d++) {
            vf k0 = vf_load(k + d * CG_KV_BLOCK + c), k1 = vf_load(k + d * CG_KV_BLOCK + c + CG_LANES);
            for (int m = 0; m < M; m++) {
                vf q = vf_set(row[m].q[d]);
                s[m][0] = vf_fma(q, k0, s[m][0]);
                s[m][1] = vf_fma(q, k1, s[m][1]);
            }
        }
        for (int m = 0; m < M; m++) {
            vf_store(row[m].p + c, s[m][0]);
            vf_store(row[m].p + c + CG_LANES, s[m][1]);
        }
    }
}

/* Scores to probabilities relative to the running maximum; returns the factor for what was summed before. A block
   that is masked out changes no bit: its probabilities are 0 and the factor is e^0 = 1. */
static inline float att_softmax(att_row *row, int64_t base, float scale) {
    vf p[ATT_VECS], most = vf_set(row->top);
    for (int i = 0; i < ATT_VECS; i++) {
        float *s = row->p + i * CG_LANES;
        int64_t at = base + i * CG_LANES;
        p[i] = vf_load(s) * scale;
        if (at < row->first || at + CG_LANES - 1 > row->last) {
            for (int j = 0; j < CG_LANES; j++)
                if (at + j < row->first || at + j > row->last) p[i][j] = -INFINITY;
        }
        most = vf_select(p[i] > most, p[i], most);
    }
    float top = vf_max_lane(most), factor = vf_exp(vf_set(row->top - top))[0];
    vf sum = vf_set(0.f);
    for (int i = 0; i < ATT_VECS; i++) {
        p[i] = vf_exp(p[i] - top);
        sum += p[i];
        vf_store(row->p + i * CG_LANES, p[i]);
    }
    row->top = top;
    row->sum = row->sum * factor + vf_sum(sum);
    return factor;
}

/* acc[m] = acc[m] * factor[m] + sum over j of p[m][j] v[j]; v [32, Dv]. */
CG_INLINE void att_values(const int M, att_row *row, const float *factor, const float *v, int64_t Dv) {
    const int wide = CG_LANES == 16 ? 1 : 2;  /* vectors of D at a time: Dv is a multiple of 16 */
    for (int64_t d = 0; d < Dv; d += wide * CG_LANES) {
        vf acc[ATT_ROWS][2];
        for (int m = 0; m < M; m++)
            for (int i = 0; i < wide; i++) acc[m][i] = vf_load(row[m].acc + d + i * CG_LANES) * factor[m];
        for (int j = 0; j < CG_KV_BLOCK; j++) {
            for (int i = 0; i < wide; i++) {
                vf vj = vf_load(v + j * Dv + d + i * CG_LANES);
                for (int m = 0; m < M; m++) acc[m][i] = vf_fma(vf_set(row[m].p[j]), vj, acc[m][i]);
            }
        }
        for (int m = 0; m < M; m++)
            for (int i = 0; i < wide; i++) vf_store(row[m].acc + d + i * CG_LANES, acc[m][i]);
    }
}

CG_INLINE void att_block(const int M, att_row *row, const float *k, const float *v, int64_t base, float scale,
                         int64_t D, int64_t Dv) {
    float factor[ATT_ROWS];
    att_scores(M, row, k, D);
    for (int m = 0; m < M; m++) factor[m] = att_softmax(row + m, base, scale);
    att_values(M, row, factor, v, Dv);
}

static void CG_NAME(attention)(const cg_attention *a, int64_t g, int64_t row0, int64_t row1) {
    att_row row[CG_ATTENTION_ROWS];
    int64_t rep = a->H / a->G, D = a->D, Dv = cg_round_up(D, CG_V_ALIGN), M = row1 - row0, first = INT64_MAX, last = 0;
    for (int64_t m = 0; m < M; m++) {
        int64_t t = (row0 + m) / rep, h = g * rep + (row0 + m) % rep, pos = a->start + t;
        att_row *r = row + m;
        r->q = a->q + t * a->q_stride + h * D;
        r->out = a->out + t * a->out_stride + h * D;
        r->first = a->window ? cg_max(0, pos - a->window + 1) : 0;
        r->last = pos;
        r->top = a->sinks ? a->sinks[h] : -1e30f;
        r->sum = a->sinks ? 1.f : 0.f;
        memset(r->acc, 0, (size_t)Dv * 4);
        first = cg_min(first, r->first);
        last = cg_max(last, pos);
    }
    for (int64_t block = first / CG_KV_BLOCK; block <= last / CG_KV_BLOCK; block++) {
        const float *k, *v;
        att_locate(a, block, g, &k, &v);
        int64_t base = block * CG_KV_BLOCK, m = 0;
        for (; m + ATT_ROWS <= M; m += ATT_ROWS) att_block(ATT_ROWS, row + m, k, v, base, a->scale, D, Dv);
        for (; m < M; m++) att_block(1, row + m, k, v, base, a->scale, D, Dv);
    }
    for (int64_t m = 0; m < M; m++)
        for (int64_t d = 0; d < D; d++) row[m].out[d] = row[m].acc[d] / row[m].sum;
}
