"""Linear probe: multinomial logistic regression on pooled features, solved to its optimum.

Shape suffixes: N videos, D feature dimensions, E principal axes, C classes, G strengths of the L2 penalty.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

L2_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of summed cross-entropy + l2/2 |W|^2: 1/C of other packages
MAX_STEPS = 150
TOLERANCE = 3e-4  # on the gradient norm in the preconditioned coordinates


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """logits = (x - mean) * scale @ kernel_DC + bias_C. `l2` is the chosen strength."""

    mean: np.ndarray
    scale: np.ndarray
    kernel_DC: np.ndarray
    bias_C: np.ndarray
    l2: float

    def predict(self, x_ND: np.ndarray) -> np.ndarray:
        """Classes, int64 [N]."""
        return self.logits(x_ND).argmax(-1)

    def logits(self, x_ND: np.ndarray) -> np.ndarray:
        """[N, C]."""
        return ((x_ND - self.mean) * self.scale) @ self.kernel_DC + self.bias_C


def train_linear(
    x_ND: np.ndarray,
    labels: np.ndarray,
    held_out: np.ndarray,
    num_classes: int,
    *,
    l2_grid: tuple[float, ...] = L2_GRID,
    pad_to: int = 0,
) -> LinearProbe:
    """Choose the L2 strength on the held-out rows, then fit all rows with it.

    Features are standardised with the mean and deviation of the given rows (V-JEPA features have outlier dimensions).
    The strength with the most correct held-out rows wins; ties go to the lower held-out cross-entropy.

    Args:
      x_ND: training features; labels: int [N]; held_out: bool [N], the rows to choose by.
      pad_to: rows to pad to, so that subsets of every size share one compiled solver.
    """
    mean, scale = standardize(x_ND)
    z_ND = ((x_ND - mean) * scale).astype(np.float32)
    padding = max(pad_to - len(z_ND), 0)
    variance_E, basis_DE = _principal_axes(z_ND, len(z_ND) + padding)
    r_NE = np.pad(z_ND @ basis_DE, ((0, padding), (0, 0)))
    y_N = np.pad(labels.astype(np.int32), (0, padding))
    l2_G = np.asarray(l2_grid, np.float32) / len(z_ND)

    start = np.zeros((len(l2_G), r_NE.shape[1] + 1, num_classes), np.float32)
    solve = functools.partial(_solve, r_NE, y_N, variance_E=variance_E)
    part = np.asarray(solve(np.pad((~held_out).astype(np.float32), (0, padding)), l2_G, start))
    correct, loss = _score(part, (z_ND @ basis_DE)[held_out], labels[held_out])
    best = np.lexsort((loss, -correct))[0]

    # The same compiled solver, every lane at the chosen strength and warm: it stops as soon as one would.
    weight = np.pad(np.ones(len(z_ND), np.float32), (0, padding))
    whole = np.asarray(solve(weight, np.full_like(l2_G, l2_G[best]), np.repeat(part[best : best + 1], len(l2_G), 0)))[0]
    return LinearProbe(mean, scale, basis_DE @ whole[:-1], whole[-1], float(l2_grid[best]))


def standardize(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1/deviation of every dimension, float32; 0 in place of 1/deviation where nothing varies."""
    mean, std = x_ND.mean(0, dtype=np.float64), x_ND.std(0, dtype=np.float64)
    varies = std > 1e-6 * np.abs(mean)
    scale = np.where(varies, 1.0 / np.where(varies, std, 1.0), 0.0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _principal_axes(z_ND: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Variances [E] along the principal axes [D, E]: in this basis the curvature is close to diagonal, see `_solve`.

    With more dimensions than `most` rows, the axes of the rows' span and E = most (surplus ones are 0): penalised
    weights have no part outside of it, and finding them costs N^2 D in place of D^3.
    """
    rows, dims = z_ND.shape
    if dims <= most:
        variance_D, basis_DD = np.linalg.eigh(z_ND.T @ z_ND / rows)
        return np.maximum(variance_D, 0.0).astype(np.float32), basis_DD
    variance_N, vectors_NN = np.linalg.eigh(z_ND @ z_ND.T / rows)
    spans = variance_N > 1e-6 * variance_N[-1]
    basis_DE = z_ND.T @ (vectors_NN[:, spans] / np.sqrt(rows * variance_N[spans]))
    surplus = most - basis_DE.shape[1]
    return np.pad(variance_N[spans], (0, surplus)), np.pad(basis_DE, ((0, 0), (0, surplus)))


def _score(weights_GEC: np.ndarray, x_ND: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correct rows and mean cross-entropy of every weight [G]."""
    logits_GNC = x_ND @ weights_GEC[:, :-1] + weights_GEC[:, -1:]
    shifted = logits_GNC - logits_GNC.max(-1, keepdims=True)
    log_p_GNC = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    correct = (logits_GNC.argmax(-1) == labels).sum(-1)
    return correct, -log_p_GNC[:, np.arange(len(labels)), labels].mean(-1)


@jax.jit
def _solve(x_NE, labels_N, weight_N, l2_G, start_GEC, variance_E):
    """Minimise weighted mean cross-entropy + l2/2 |W|^2 by L-BFGS, every l2 at once. Weights [G, E+1, C], bias last.

    L-BFGS runs on W / preconditioner: near W = 0 the Hessian is about diag(variance / C + l2), so dividing by its root
    leaves a well-conditioned problem with the same optimum. Where classes separate, curvature shrinks as weights grow
    and that guess is too steep for directions of little variance; the constant 0.01 bounds it. Steps to the tolerance
    on 2,000 x 96 features of decaying variance: 350 without, 40 with; on 100 separable ones 65 and 50.
    """
    classes = start_GEC.shape[-1]

    def one(l2, start_EC):
        precondition_E1 = jnp.append(jax.lax.rsqrt(variance_E / classes + l2 + 0.01), 1.0)[:, None]

        def loss(v_EC):
            w_EC = v_EC * precondition_E1
            logits_NC = jnp.matmul(x_NE, w_EC[:-1], precision="highest") + w_EC[-1]
            ce_N = optax.softmax_cross_entropy_with_integer_labels(logits_NC, labels_N)
            return (weight_N * ce_N).sum() / weight_N.sum() + 0.5 * l2 * jnp.square(w_EC[:-1]).sum()

        return _lbfgs(loss, start_EC / precondition_E1) * precondition_E1

    return jax.vmap(one)(l2_G, start_GEC)


def _lbfgs(loss, start):
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=8, initial_guess_strategy="one")
    optimizer = optax.lbfgs(memory_size=10, linesearch=search)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, count, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        norm = jnp.linalg.norm(optax.tree.get(state, "grad"))
        return optax.apply_updates(params, updates), state, count + 1, norm

    def unfinished(carry):
        return (carry[2] < MAX_STEPS) & (carry[3] > TOLERANCE)

    return jax.lax.while_loop(unfinished, step, (start, optimizer.init(start), 0, jnp.inf))[0]
