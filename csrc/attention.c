/* attention: out[t][h] = sum over visible p of softmax(q[t][h] . k[p] * scale, sink[h]) v[p], for up to 8 (token, head)
   rows that share key/value head g. Shapes and masks in cgpt.h, cg_attention.
   Online softmax, one step per block of 32 absolute positions: a sink is a first key with score sink[h] and value 0.
   f32 throughout; a row's order of summation depends on its own position and window only. Parallel over (g, rows). */

enum {
    ATT_VECS = CG_KV_BLOCK / CG_LANES,
    ATT_ROWS = CG_LANES == 16 ? 8 : 4,  /* rows together */
    ATT_AHEAD = 4,                      /* blocks whose scores one row alone takes together: more sums in flight */
};

typedef struct {
    /* A copy: all rows' elements at constant distances need one address. Aligned by hand: GCC 12 takes the rows on the
       stack for aligned to 64 bytes in AVX-512 code, and does not see to it. */
    _Alignas(64) float q[CG_MAX_HEAD_DIM];
    float *out;
    int64_t first, last;              /* visible positions */
    float top, sum;                   /* running maximum and denominator */
    float p[ATT_AHEAD][CG_KV_BLOCK];  /* scores, then probabilities, of the blocks at hand */
    float acc[CG_MAX_HEAD_DIM];
} att_row;

static inline void att_locate(const cg_attention *a, int64_t block, int64_t g, const float **k, const float **v) {
    int64_t fresh = a->first_fresh / CG_KV_BLOCK;
    const cg_kv *kv = block < fresh ? &a->past : &a->fresh;
    int64_t at = ((block < fresh ? block : block - fresh) % kv->blocks) * a->G + g;
    *k = kv->k + at * a->D * CG_KV_BLOCK;
    *v = kv->v + at * CG_KV_BLOCK * cg_round_up(a->D, CG_V_ALIGN);
}

/* row[m].p[b][j] = q[m] . k[b][j] for the 32 keys of B blocks [D, 32]; a pair of vectors of keys at a time. */
CG_INLINE void att_scores(const int M, const int B, att_row *row, const float *const *k, int64_t D) {
    for (int c = 0; c < CG_KV_BLOCK; c += 2 * CG_LANES) {
        vf s[ATT_ROWS][2];
        for (int i = 0; i < M * B; i++) s[i][0] = s[i][1] = vf_set(0.f);
        for (int64_t d = 0; d < D; d++) {
            for (int b = 0; b < B; b++) {
                const float *kd = k[b] + d * CG_KV_BLOCK + c;
                vf k0 = vf_load(kd), k1 = vf_load(kd + CG_LANES);
                for (int m = 0; m < M; m++) {
                    vf q = vf_set(row[m].q[d]);
                    s[m * B + b][0] = vf_fma(q, k0, s[m * B + b][0]);
                    s[m * B + b][1] = vf_fma(q, k1, s[m * B + b][1]);
                }
            }
        }
        for (int i = 0; i < M * B; i++) {
            vf_store(row[i / B].p[i % B] + c, s[i][0]);
            vf_store(row[i / B].p[i % B] + c + CG_LANES, s[i][1]);
        }
    }
}

/* Scores p to probabilities relative to the running maximum; returns the factor for what was summed before. A block
   that is masked out changes no bit: its probabilities are 0 and the factor is e^0 = 1. */
CG_INLINE float att_softmax(att_row *row, float *scores, int64_t base, float scale) {
    vf p[ATT_VECS], most = vf_set(row->top);
    int inside = base >= row->first && base + CG_KV_BLOCK - 1 <= row->last;
    for (int i = 0; i < ATT_VECS; i++) p[i] = vf_load(scores + i * CG_LANES) * scale;
    if (!inside)
        for (int i = 0; i < CG_KV_BLOCK; i++)
            if (base + i < row->first || base + i > row->last) p[i / CG_LANES][i % CG_LANES] = -INFINITY;
    for (int i = 0; i < ATT_VECS; i++) most = vf_select(p[i] > most, p[i], most);
    float top = vf_max_lane(most);
    vf sum = vf_set(0.f);
    for (int i = 0; i < ATT_VECS; i++) {
        p[i] = vf_exp(p[i] - top);
        sum += p[i];
        vf_store(scores + i * CG_LANES, p[i]);
    }
    float factor = top == row->top ? 1.f : vf_exp(vf_set(row->top - top))[0];
    row->top = top;
    row->sum = row->sum * factor + vf_sum(sum);
    return factor;
}

/* acc[m][d ..] = acc[m][d ..] * factor[m] + sum over j of row[m].p[b][j] v[j][d ..], W vectors wide; v [32, Dv], from
   position `base`. `edge`: a row may not see all 32, and skips what it does not see, because 0 x NaN is not 0. */
CG_INLINE void att_values(const int M, const int W, const int edge, att_row *row, int b, int64_t base,
                          const float *factor, const float *v, int64_t Dv, int64_t d) {
    vf acc[ATT_ROWS][4];
    for (int m = 0; m < M; m++)
        for (int i = 0; i < W; i++) acc[m][i] = vf_load(row[m].acc + d + i * CG_LANES) * factor[m];
    for (int j = 0; j < CG_KV_BLOCK; j++) {
        vf vj[4];
        for (int i = 0; i < W; i++) vj[i] = vf_load(v + j * Dv + d + i * CG_LANES);
        for (int m = 0; m < M; m++) {
            if (edge && (base + j < row[m].first || base + j > row[m].last)) continue;
            vf p = vf_set(row[m].p[b][j]);
            for (int i = 0; i < W; i++) acc[m][i] = vf_fma(p, vj[i], acc[m][i]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int i = 0; i < W; i++) vf_store(row[m].acc + d + i * CG_LANES, acc[m][i]);
}

CG_INLINE void att_all_values(const int M, const int edge, att_row *row, int b, int64_t base, const float *factor,
                              const float *v, int64_t Dv) {
    const int wide = M == 1 ? 4 : 2;
    int64_t d = 0;
    for (; d + wide * CG_LANES <= Dv; d += wide * CG_LANES) att_values(M, wide, edge, row, b, base, factor, v, Dv, d);
    for (; d < Dv; d += CG_LANES) att_values(M, 1, edge, row, b, base, factor, v, Dv, d);
}

/* M rows over B blocks, the first at position `base`. Each row takes the blocks one after the other. The first row sees
   least of what is new and the last least of what is old. */
CG_INLINE void att_blocks(const int M, const int B, att_row *row, const float *const *k, const float *const *v,
                          int64_t base, float scale, int64_t D, int64_t Dv) {
    att_scores(M, B, row, k, D);
    for (int b = 0; b < B; b++, base += CG_KV_BLOCK) {
        float factor[ATT_ROWS];
        for (int m = 0; m < M; m++) factor[m] = att_softmax(row + m, row[m].p[b], base, scale);
        if (row[0].last < base + CG_KV_BLOCK - 1 || row[M - 1].first > base)
            att_all_values(M, 1, row, b, base, factor, v[b], Dv);
        else att_all_values(M, 0, row, b, base, factor, v[b], Dv);
    }
}

static void CG_NAME(attention)(const cg_attention *a, int64_t g, int64_t row0, int64_t row1) {
    att_row row[CG_ATTENTION_ROWS];
    int64_t rep = a->H / a->G, D = a->D, Dv = cg_round_up(D, CG_V_ALIGN), M = row1 - row0, first = INT64_MAX, last = 0;
    for (int64_t m = 0; m < M; m++) {
        int64_t t = (row0 + m) / rep, h = g * rep + (row0 + m) % rep, pos = a->start + t;
        att_row *r = row + m;
        memcpy(r->q, a->q + t * a->q_stride + h * D, (size_t)D * 4);
        r->out = a->out + t * a->out_stride + h * D;
        r->first = a->window ? cg_max(0, pos - a->window + 1) : 0;
        r->last = pos;
        r->top = a->sinks && a->sinks[h] > -1e30f ? a->sinks[h] : -1e30f;
        r->sum = a->sinks ? vf_exp(vf_set(a->sinks[h] - r->top))[0] : 0.f;
        memset(r->acc, 0, (size_t)Dv * 4);
        first = cg_min(first, r->first);
        last = cg_max(last, pos);
    }
    int64_t block = first / CG_KV_BLOCK, end = last / CG_KV_BLOCK + 1;
    while (block < end) {
        const float *k[ATT_AHEAD], *v[ATT_AHEAD];
        int64_t base = block * CG_KV_BLOCK, m = 0;
        int count = M < ATT_ROWS && block + ATT_AHEAD <= end ? ATT_AHEAD : 1;
        for (int b = 0; b < count; b++) att_locate(a, block + b, g, k + b, v + b);
        for (; m + ATT_ROWS <= M; m += ATT_ROWS) att_blocks(ATT_ROWS, 1, row + m, k, v, base, a->scale, D, Dv);
        for (; m < M; m++) {
            if (count == 1) att_blocks(1, 1, row + m, k, v, base, a->scale, D, Dv);
            else att_blocks(1, ATT_AHEAD, row + m, k, v, base, a->scale, D, Dv);
        }
        block += count;
    }
    for (int64_t m = 0; m < M; m++)
        for (int64_t d = 0; d < D; d++) row[m].out[d] = row[m].acc[d] / row[m].sum;
}
