"""A synthetic abdomen: CT-like volumes with the eight Synapse organs, for trying the full pipeline without any data.

Every volume is one "patient": organs are deformed ellipsoids and tubes whose place, size, tilt and grey value vary
from patient to patient, among unlabelled distractors (spine, ribs, fat, vena cava, bowel, lung), seen through blur
and noise. Nothing measured on it says anything about real CT.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from medseg.data.nifti import HU_WINDOW
from medseg.files import write_h5, write_npz, write_text

Volume = NDArray[np.float32]

SHAPE = (20, 96, 96)  # slices, rows, columns


@dataclass(frozen=True)
class Structure:
    """An ellipsoid in body coordinates: x to the patient's left, y to the back, z to the head, each in [-1, 1]."""

    label: int  # 0: not an organ of the task
    hu: float  # mean grey value in Hounsfield units
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    tilt: float = 0.0  # rotation in the axial plane, in degrees


# Painted in this order, later ones over earlier ones. Labels as in the Synapse set.
STRUCTURES = (
    Structure(0, 40, (0.10, -0.30, -0.75), (0.55, 0.22, 0.40)),  # bowel
    Structure(5, 112, (-0.36, -0.08, 0.30), (0.44, 0.46, 0.62), tilt=-12),  # liver
    Structure(8, 60, (0.28, -0.28, 0.36), (0.27, 0.22, 0.48), tilt=20),  # stomach
    Structure(7, 125, (0.60, 0.16, 0.42), (0.15, 0.27, 0.42), tilt=-15),  # spleen
    Structure(3, 185, (0.42, 0.36, -0.28), (0.155, 0.165, 0.46), tilt=20),  # left kidney
    Structure(4, 185, (-0.42, 0.36, -0.38), (0.155, 0.165, 0.46), tilt=-20),  # right kidney
    Structure(6, 85, (0.12, -0.02, -0.12), (0.34, 0.105, 0.28), tilt=-14),  # pancreas
    Structure(2, 12, (-0.26, -0.32, -0.20), (0.15, 0.16, 0.36), tilt=10),  # gallbladder
    Structure(0, 135, (-0.14, 0.16, 0.0), (0.075, 0.065, 3.0)),  # inferior vena cava
    Structure(0, 260, (0.0, 0.46, 0.0), (0.16, 0.14, 3.0)),  # vertebral bodies
    Structure(1, 215, (0.07, 0.22, 0.0), (0.080, 0.080, 3.0)),  # aorta
)


def make_phantom(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Volume, Volume]:
    """One synthetic patient.

    Args:
        seed: Decides everything about the patient.
        shape: Slices, rows and columns.

    Returns:
        Image in [0, 1] (grey values of -125 to 275 HU) and label 0-8, both float32 of that shape, as in the
        preprocessed Synapse set.
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    # Patients differ in build and are not ellipsoids: stretch, then bend space smoothly before drawing in it.
    x = x / rng.uniform(0.96, 1.06) + _smooth_noise(rng, shape, amplitude=0.05)
    y = y / rng.uniform(0.92, 1.06) + _smooth_noise(rng, shape, amplitude=0.05)
    z = z + rng.uniform(-0.08, 0.08) + _smooth_noise(rng, shape, amplitude=0.05)

    body = (x / 0.93) ** 2 + (y / 0.80) ** 2
    hu = np.full(shape, -1000.0, dtype=np.float32)
    hu[body < 1] = -100  # fat
    hu[body < 0.84] = 50  # muscle
    hu[body < 0.66] = -90  # fat between the organs
    ribs = (np.abs(body - 0.75) < 0.06) & (np.sin(14 * z + 3 * np.abs(x)) > 0.3)
    hu[ribs] = 350
    lungs = (body < 0.66) & (z > 0.78 + 0.35 * (x**2 + y**2)) & (y > -0.3)
    hu[lungs] = -800

    label = np.zeros(shape, dtype=np.float32)
    for structure in STRUCTURES:
        inside = _ellipsoid(rng, structure, x, y, z)
        hu[inside] = structure.hu + rng.normal(0, 7)
        label[inside] = structure.label
    gas = (label == 8) & (y < -0.36)  # gas rises to the front of the stomach
    hu[gas] = -400
    hu += np.where(label > 0, _smooth_noise(rng, shape, amplitude=10), 0)  # texture

    hu = ndimage.gaussian_filter(hu, sigma=(0.3, 0.6, 0.6))  # partial volume
    hu += rng.normal(0, 14, shape) + ndimage.gaussian_filter(rng.normal(0, 24, shape), (0, 1, 1))
    low, high = HU_WINDOW
    image = (np.clip(hu, low, high) - low) / (high - low)
    return image.astype(np.float32), label


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], amplitude: float) -> Volume:
    coarse = rng.normal(0, amplitude, (3, 4, 4))
    # Cubic splines, an axis at a time: many times as fast as one ndimage.zoom of the volume, and equal.
    z, y, x = (ndimage.zoom(np.eye(m), (n / m, 1), order=3) for n, m in zip(shape, coarse.shape, strict=True))
    field: Volume = np.einsum("az,by,cx,zyx->abc", z, y, x, coarse, optimize=True)
    return field.astype(np.float32)


def _ellipsoid(rng: np.random.Generator, structure: Structure, x: Volume, y: Volume, z: Volume) -> NDArray[np.bool_]:
    cx, cy, cz = (c + rng.normal(0, s) for c, s in zip(structure.centre, (0.025, 0.025, 0.05), strict=True))
    rx, ry, rz = (r * rng.uniform(0.9, 1.12) for r in structure.radii)
    angle = np.deg2rad(structure.tilt + rng.normal(0, 6))
    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    inside: NDArray[np.bool_] = (u / rx) ** 2 + (v / ry) ** 2 + ((z - cz) / rz) ** 2 < 1
    return inside


def write_phantoms(folder: Path, *, train: int, test: int, seed: int) -> Path:
    """Write phantoms in the on-disk layout of the preprocessed Synapse set.

    Args:
        folder: Receives ``train_npz/``, ``test_vol_h5/`` and ``lists_Synapse/``.
        train: Patients whose slices are for training.
        test: Further patients, written as whole volumes for testing.
        seed: Of the first patient; the others follow.

    Returns:
        ``folder``.
    """
    slices, volumes = [], []
    for number in tqdm(range(train + test), desc="Synthetic patients", disable=None):
        image, label = make_phantom(seed * 10_000 + number)
        case = f"case{number:04d}"
        if number < train:
            for z in range(len(image)):
                slices.append(f"{case}_slice{z:03d}")
                write_npz(folder / "train_npz" / f"{slices[-1]}.npz", image=image[z], label=label[z])
        else:
            volumes.append(case)
            write_h5(folder / "test_vol_h5" / f"{case}.npy.h5", image=image, label=label)
    write_text(folder / "lists_Synapse" / "train.txt", "\n".join(slices) + "\n")
    write_text(folder / "lists_Synapse" / "test_vol.txt", "\n".join(volumes) + "\n")
    return folder
