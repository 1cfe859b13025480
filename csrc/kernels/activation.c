/* activation: the functions that GPT-2 configs name, in place over n values.
   gelu_tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), "gelu_new"; gelu_erf: x/2 (1 + erf(x / sqrt 2)), "gelu";
   quick_gelu: x sigmoid(1.702 x). Hendrycks & Gimpel, arXiv:1606.08415; transformers/activations.py.
   Errors: about 1e-7 of |x|; erf and tanh are libm's. */
CG_INLINE vf activate(cg_activation which, vf x) {
    switch (which) {
    case CG_GELU_TANH: return .5f * x * (1.f + vf_tanh(0.797884561f * (x + 0.044715f * x * x * x)));
    case CG_QUICK_GELU: return x * vf_sigmoid(1.702f * x);
    case CG_SILU: return x * vf_sigmoid(x);
    case CG_RELU: return vf_select(x < 0.f, vf_set(0.f), x);
    case CG_GELU_ERF:
        for (int i = 0; i < CG_LANES; i++) x[i] = .5f * x[i] * (1.f + erff(x[i] * 0.707106781f));
        return x;
    default:
        for (int i = 0; i < CG_LANES; i++) x[i] = tanhf(x[i]);
        return x;
    }
}

CG_INLINE void activate_all(float *x, cg_activation which, int64_t n) {
    int64_t i = 0;
    for (; i + CG_LANES <= n; i += CG_LANES) vf_store(x + i, activate(which, vf_load(x + i)));
    if (i < n) vf_store_n(x + i, activate(which, vf_load_n(x + i, n - i)), n - i);
}

static void CG_NAME(activation)(float *x, cg_activation which, int64_t n) {
    switch (which) { /* the choice outside the loop */
    case CG_GELU_TANH: activate_all(x, CG_GELU_TANH, n); break;
    case CG_QUICK_GELU: activate_all(x, CG_QUICK_GELU, n); break;
    case CG_SILU: activate_all(x, CG_SILU, n); break;
    case CG_RELU: activate_all(x, CG_RELU, n); break;
    case CG_GELU_ERF: activate_all(x, CG_GELU_ERF, n); break;
    default: activate_all(x, CG_TANH, n);
    }
}
