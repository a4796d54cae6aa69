"""Rotations and rigid motions, batched over N poses.

R [N, 3, 3], c2w and w2c [N, 4, 4], quaternions [N, 4] in the order w x y z; float64 throughout.
"""

from collections.abc import Callable

import numpy as np

from ..errors import CameraError

# Text files carry about six digits, hand-made ones fewer. Past this, a matrix is not a rotation with rounding errors.
ROTATION_TOLERANCE = 2e-3
# Rounding in float64 stays below this: such a pose is kept bit for bit.
_ROUNDING = 1e-9
_MAX_COORDINATE = 1e12


def rot_x(angle: np.ndarray) -> np.ndarray:
    """Rotation about x (right) by `angle` [N] radians; positive turns z (forward) up, to -y."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).reshape(-1, 3, 3)


def rot_y(angle: np.ndarray) -> np.ndarray:
    """Rotation about y (down) by `angle` [N] radians; positive turns z (forward) to the right, to +x."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).reshape(-1, 3, 3)


def rot_z(angle: np.ndarray) -> np.ndarray:
    """Rotation about z (forward) by `angle` [N] radians; positive turns x (right) down, to +y."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(-1, 3, 3)


def rigid(R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[N, 4, 4] from R [N, 3, 3] and t [N, 3]."""
    pose = np.zeros((len(R), 4, 4))
    pose[:, :3, :3] = R
    pose[:, :3, 3] = t
    pose[:, 3, 3] = 1.0
    return pose


def inverse(pose: np.ndarray) -> np.ndarray:
    """The inverse rigid motions: c2w to w2c and back, [N, 4, 4]."""
    Rt = pose[:, :3, :3].transpose(0, 2, 1)
    return rigid(Rt, -np.einsum("nij,nj->ni", Rt, pose[:, :3, 3]))


def level_basis(direction: np.ndarray) -> np.ndarray:
    """R [N, 3, 3] whose z axis is `direction` [N, 3] (unit) and whose x axis stays level (no y component)."""
    x = np.cross(np.array([0.0, 1.0, 0.0]), direction)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return np.stack([x, np.cross(direction, x), direction], -1)


def quaternion_from_matrix(R: np.ndarray) -> np.ndarray:
    """Unit quaternions [N, 4] (w x y z, w >= 0) of R [N, 3, 3].

    Every row of 4 q q^T is q up to scale; the row of the largest diagonal entry is the stable one (Shepperd 1978).
    """
    m = R.transpose(1, 2, 0)  # [3, 3, N]
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    outer = np.empty((len(R), 4, 4))
    outer[:, 0, 0] = 1 + trace
    for axis, (j, k) in enumerate(((1, 2), (2, 0), (0, 1))):
        outer[:, axis + 1, axis + 1] = 1 - trace + 2 * m[axis, axis]
        outer[:, 0, axis + 1] = outer[:, axis + 1, 0] = m[k, j] - m[j, k]
        outer[:, j + 1, k + 1] = outer[:, k + 1, j + 1] = m[j, k] + m[k, j]
    best = outer.diagonal(axis1=1, axis2=2).argmax(-1)
    q = outer[np.arange(len(R)), best]
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    return np.where(q[:, :1] < 0, -q, q)


def matrix_from_quaternion(q: np.ndarray) -> np.ndarray:
    """R [N, 3, 3] of quaternions [N, 4] (w x y z), which are normalized first."""
    w, x, y, z = (q / np.linalg.norm(q, axis=-1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def slerp(q0: np.ndarray, q1: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Constant-speed rotation from q0 to q1 the short way round (Shoemake 1985); all [N, 4], fraction [N]."""
    dot = np.einsum("ni,ni->n", q0, q1)
    q1 = np.where(dot[:, None] < 0, -q1, q1)
    angle = np.arccos(np.clip(np.abs(dot), 0.0, 1.0))
    # Below this angle the arc is its chord to float64 precision, and the sine's quotient is not.
    small = angle < 1e-6
    sine = np.where(small, 1.0, np.sin(angle))
    w0 = np.where(small, 1 - fraction, np.sin((1 - fraction) * angle) / sine)
    w1 = np.where(small, fraction, np.sin(fraction * angle) / sine)
    q = w0[:, None] * q0 + w1[:, None] * q1
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def rotation_angle_deg(R: np.ndarray) -> np.ndarray:
    """How far each R [N, 3, 3] turns, in degrees [N]."""
    q = quaternion_from_matrix(R)
    return np.degrees(2 * np.arctan2(np.linalg.norm(q[:, 1:], axis=-1), q[:, 0]))


def checked_poses(pose: np.ndarray, name: Callable[[int], str]) -> np.ndarray:
    """The poses with their rotations made exactly orthonormal, where they are poses at all.

    Args:
        pose: [N, 4, 4].
        name: What to call pose i in an error ("clip.json: frame 3").

    Raises:
        CameraError: a number that is not finite, a last row other than 0 0 0 1, a matrix that scales or shears by
            more than `ROTATION_TOLERANCE`, or a mirrored one (determinant -1).
    """

    def refuse(bad: np.ndarray | np.bool, problem: Callable[[int], str]) -> None:
        if bad.any():
            i = int(bad.argmax())
            raise CameraError(f"{name(i)}: {problem(i)}", param="camera")

    flat = pose.reshape(len(pose), 16)
    refuse(~np.isfinite(flat).all(-1), lambda _: "the pose has a number that is not finite")
    refuse(
        (np.abs(pose[:, 3] - [0, 0, 0, 1]) > 1e-6).any(-1),
        lambda i: f"the pose's last row must be 0 0 0 1, not {' '.join(f'{v:g}' for v in pose[i, 3])}",
    )
    refuse((np.abs(flat) > _MAX_COORDINATE).any(-1), lambda _: f"the pose has a number beyond {_MAX_COORDINATE:g}")
    R = pose[:, :3, :3]
    error = np.abs(R.transpose(0, 2, 1) @ R - np.eye(3)).max((-1, -2))
    refuse(
        error > ROTATION_TOLERANCE,
        lambda i: f"the pose's 3x3 part is not a rotation (R^T R differs from the identity by {error[i]:.2g})",
    )
    refuse(
        np.linalg.det(R) < 0,
        lambda _: "the pose is mirrored (det R = -1): an axis was flipped or two were swapped on the way",
    )
    clean = pose.astype(np.float64)
    clean[:, 3] = [0, 0, 0, 1]
    rounded = error > _ROUNDING
    if rounded.any():
        u, _, vt = np.linalg.svd(R[rounded])
        clean[rounded, :3, :3] = u @ vt
    return clean
