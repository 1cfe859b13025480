/* int4_decode: the integers of INT4 groups, as INT8 has them: out[64 g + i] = the value of code i of group g. The code
   of weight i is in the low half of byte i of its group, that of weight 32 + i in the high half. */
#include "kernels/linear/int8.h"
#include "simd/vec.h"

enum { INT4_AHEAD_BYTES = 1024 };

static void CG_NAME(int4_decode)(uint8_t *out, const uint8_t *codes, int64_t groups) {
    for (int64_t g = 0; g < groups; g++, out += CG_INT8_GROUP, codes += CG_INT8_GROUP / 2) {
#ifdef CG_HAS_MM
        const __m256i low = _mm256_set1_epi8(15), table = _mm256_setr_epi8(CG_INT4_VALUES, CG_INT4_VALUES);
        __m256i both = _mm256_loadu_si256((const __m256i_u *)codes), upper = _mm256_srli_epi16(both, 4);
        __builtin_prefetch(codes + INT4_AHEAD_BYTES, 0, 3);
        _mm256_storeu_si256((__m256i_u *)out, _mm256_shuffle_epi8(table, _mm256_and_si256(both, low)));
        _mm256_storeu_si256((__m256i_u *)out + 1, _mm256_shuffle_epi8(table, _mm256_and_si256(upper, low)));
#else
        for (int i = 0; i < CG_INT8_GROUP / 2; i++) {
            out[i] = (uint8_t)int4_values[codes[i] & 15];
            out[i + CG_INT8_GROUP / 2] = (uint8_t)int4_values[codes[i] >> 4];
        }
#endif
    }
}
