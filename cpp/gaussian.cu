// A Gaussian latent: reparametrised sample and divergence from the standard normal, with free bits (Kingma et al. 2016): a term
// of the divergence below them is raised to them and gets no gradient, element by element, or column by column by the mean.
#include "device.h"

// kl as it is; the free bits of elements are applied where asked for.
extern "C" __global__ void gaussian_kl(int64_t n, const T* mu, const T* logvar, const T* eps, double free_bits, int64_t floor,
                                       T* z, T* kl) {
  RHEME_EACH(i, n) {
    const T sigma = gaussian_sigma<S>(logvar[i]);
    if (z) z[i] = S::fma(sigma, eps[i], mu[i]);
    const T divergence = gaussian_divergence<S>(mu[i], logvar[i], sigma);
    kl[i] = floor && divergence < T(free_bits) ? T(free_bits) : divergence;
  }
}

// Columns whose mean is below the free bits are raised to them. sums (D,): of each column.
extern "C" __global__ void gaussian_floor(int64_t n, int64_t d, const T* sums, double free_bits, T* kl) {
  RHEME_EACH(i, n * d) if (sums[i % d] / T(n) < T(free_bits)) kl[i] = T(free_bits);
}

// sums: of each column where the free bits are the batch's, else null.
extern "C" __global__ void gaussian_kl_backward(int64_t n, int64_t d, const T* dz, const T* dkl, const T* mu, const T* logvar,
                                                const T* eps, const T* sums, double free_bits, T* dmu, T* dlogvar) {
  RHEME_EACH(i, n * d) {
    const T sigma = gaussian_sigma<S>(logvar[i]);
    const bool blocked =
        sums ? sums[i % d] / T(n) < T(free_bits) : gaussian_divergence<S>(mu[i], logvar[i], sigma) < T(free_bits);
    gaussian_gradient<S>(dz[i], blocked ? T(0) : dkl[i], mu[i], logvar[i], eps[i], sigma, dmu[i], dlogvar[i]);
  }
}
