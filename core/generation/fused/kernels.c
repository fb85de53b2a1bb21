/* Forward and backward between two convolutions, in one pass over memory each. kernels.py describes the arguments.

   A tensor is rows of `channels` numbers, one row a pixel (channels-last). Work is cut into blocks of BLOCK numbers regardless of the number
   of threads, and their sums are added up in order, so that the number of threads does not change a bit. */

#include <stdint.h>
#include <stdlib.h>

#define BLOCK 65536 /* numbers, a quarter of a megabyte: three such tensors fit into the cache of a core */
#define LANES 256   /* independent sums, so that no addition waits for the previous one */

typedef int64_t integer;

static integer at_least_one(integer value) { return value > 0 ? value : 1; }

static integer block_pixels(integer channels) { return at_least_one(BLOCK / channels); }

static integer lane_pixels(integer channels) { return at_least_one(LANES / channels); }

/* Sums and sums of squares of `pixels` rows of y; if z is not null, z = clamp(y + other, low, high), where other may be null. */
static void block_forward(const float *restrict y, const float *restrict other, float *restrict z, integer pixels, integer channels,
                          float low, float high, float *restrict sums, float *restrict squares) {
    const integer width = lane_pixels(channels) * channels, count = pixels * channels;
    for (integer i = 0; i < width; i++) sums[i] = squares[i] = 0.0f;
    for (integer start = 0; start < count; start += width) {
        const integer length = count - start < width ? count - start : width;
        const float *restrict part = y + start;
        for (integer i = 0; i < length; i++) {
            sums[i] += part[i];
            squares[i] += part[i] * part[i];
        }
        if (!z) continue;
        float *restrict out = z + start;
        if (other) {
            const float *restrict added = other + start;
            for (integer i = 0; i < length; i++) {
                float value = part[i] + added[i];
                value = value < low ? low : value;
                out[i] = value > high ? high : value;
            }
        } else {
            for (integer i = 0; i < length; i++) {
                float value = part[i] < low ? low : part[i];
                out[i] = value > high ? high : value;
            }
        }
    }
}

/* `mean` and the unbiased `variance` are those of (y - shift) / scale, all of them `channels` numbers. */
static int forward_together(const float *y, const float *other, float *z, integer pixels, integer channels, float low, float high,
                            const float *scale, const float *shift, float *mean, float *variance, int threads) {
    const integer length = block_pixels(channels), blocks = (pixels + length - 1) / length, width = lane_pixels(channels) * channels;
    double *totals = calloc(2 * channels, sizeof(double));
    float *parts = malloc(sizeof(float) * 2 * width * blocks);
    if (!totals || !parts) {
        free(totals);
        free(parts);
        return 1;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (integer block = 0; block < blocks; block++) {
        const integer first = block * length, own = pixels - first < length ? pixels - first : length, at = first * channels;
        float *sums = parts + 2 * width * block;
        block_forward(y + at, other ? other + at : 0, z ? z + at : 0, own, channels, low, high, sums, sums + width);
    }
    for (integer block = 0; block < 2 * blocks; block++)
        for (integer i = 0; i < width; i++) totals[(block % 2) * channels + i % channels] += parts[width * block + i];
    for (integer c = 0; c < channels; c++) {
        const double center = totals[c] / pixels, spread = totals[channels + c] / pixels - center * center, factor = scale[c];
        mean[c] = (center - shift[c]) / factor;
        variance[c] = (spread < 0.0 ? 0.0 : spread) * pixels / at_least_one(pixels - 1) / (factor * factor);
    }
    free(totals);
    free(parts);
    return 0;
}

/* Over all `groups` of `pixels` rows; mean and variance are groups times channels numbers, those of each group. */
int forward(const float *y, const float *other, float *z, integer groups, integer pixels, integer channels, float low, float high,
            const float *scale, const float *shift, float *mean, float *variance, int threads) {
    if (groups == 1) return forward_together(y, other, z, pixels, channels, low, high, scale, shift, mean, variance, threads);
    int status = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : status)
    for (integer group = 0; group < groups; group++) {
        const integer at = group * pixels * channels, own = group * channels;
        status |= forward_together(y + at, other ? other + at : 0, z ? z + at : 0, pixels, channels, low, high, scale, shift, mean + own,
                                   variance + own, 1);
    }
    return status;
}

/* out = grad' + slope y + offset, where grad' is grad + second if low < output < high, else 0. It is written to passed if output is given;
   without output, y shows what was clamped (if `clamped`). second may be null. y and out may be the same memory. */
static inline __attribute__((always_inline)) void block_backward(const int two, const float *y, const float *restrict grad,
                                                                 const float *restrict second, const float *restrict output,
                                                                 float *restrict passed, float *out, integer count, integer width,
                                                                 int clamped, float low, float high, const float *restrict slope,
                                                                 const float *restrict offset) {
    for (integer start = 0; start < count; start += width) {
        const integer length = count - start < width ? count - start : width;
        const float *part = y + start, *restrict arriving = grad + start, *restrict also = two ? second + start : grad;
        float *result = out + start;
        if (output) {
            const float *restrict seen = output + start;
            float *restrict through = passed + start;
#pragma omp simd
            for (integer i = 0; i < length; i++) {
                const float sum = two ? arriving[i] + also[i] : arriving[i];
                const float own = (seen[i] <= low) | (seen[i] >= high) ? 0.0f : sum;
                through[i] = own;
                result[i] = own + (slope[i] * part[i] + offset[i]);
            }
        } else if (clamped) {
#pragma omp simd
            for (integer i = 0; i < length; i++) {
                const float sum = two ? arriving[i] + also[i] : arriving[i];
                const float own = (part[i] <= low) | (part[i] >= high) ? 0.0f : sum;
                result[i] = own + (slope[i] * part[i] + offset[i]);
            }
        } else {
#pragma omp simd
            for (integer i = 0; i < length; i++) {
                const float sum = two ? arriving[i] + also[i] : arriving[i];
                result[i] = sum + (slope[i] * part[i] + offset[i]);
            }
        }
    }
}

/* grad_mean and grad_variance: the gradients of the statistics that `forward_together` returned. */
static int backward_together(const float *y, const float *grad, const float *second, const float *output, float *passed, float *out,
                             integer pixels, integer channels, int clamped, float low, float high, const float *scale, const float *shift,
                             const float *mean, const float *grad_mean, const float *grad_variance, int threads) {
    const integer length = block_pixels(channels), blocks = (pixels + length - 1) / length, width = lane_pixels(channels) * channels;
    float *factors = malloc(sizeof(float) * 2 * width);
    if (!factors) return 1;
    for (integer i = 0; i < width; i++) {
        const integer c = i % channels;
        const double factor = scale[c], slope = 2.0 * grad_variance[c] / (factor * factor) / at_least_one(pixels - 1);
        factors[i] = slope;
        factors[width + i] = grad_mean[c] / factor / pixels - slope * (mean[c] * factor + shift[c]);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (integer block = 0; block < blocks; block++) {
        const integer first = block * length, own = pixels - first < length ? pixels - first : length, at = first * channels;
        const float *seen = output ? output + at : 0;
        float *through = passed ? passed + at : 0;
        if (second)
            block_backward(1, y + at, grad + at, second + at, seen, through, out + at, own * channels, width, clamped, low, high, factors,
                           factors + width);
        else
            block_backward(0, y + at, grad + at, 0, seen, through, out + at, own * channels, width, clamped, low, high, factors,
                           factors + width);
    }
    free(factors);
    return 0;
}

/* Over all `groups` of `pixels` rows, as in `forward`. */
int backward(const float *y, const float *grad, const float *second, const float *output, float *passed, float *out, integer groups,
             integer pixels, integer channels, int clamped, float low, float high, const float *scale, const float *shift, const float *mean,
             const float *grad_mean, const float *grad_variance, int threads) {
    if (groups == 1)
        return backward_together(y, grad, second, output, passed, out, pixels, channels, clamped, low, high, scale, shift, mean, grad_mean,
                                 grad_variance, threads);
    int status = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : status)
    for (integer group = 0; group < groups; group++) {
        const integer at = group * pixels * channels, own = group * channels;
        status |= backward_together(y + at, grad + at, second ? second + at : 0, output ? output + at : 0, passed ? passed + at : 0, out + at,
                                    pixels, channels, clamped, low, high, scale, shift, mean + own, grad_mean + own, grad_variance + own, 1);
    }
    return status;
}
