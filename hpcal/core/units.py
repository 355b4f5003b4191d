"""Units of hpcal and the factors at its edges.

Inside: eV, Å, fs, K, amu, eV/Å, eV/Å³ (stress positive in tension), e, e·Å.
Conversions happen where a file or another library is met, with these names only.
Values: CODATA 2018.
"""

from __future__ import annotations

from typing import Final

HARTREE: Final = 27.211386245988
"""eV in one Hartree."""
BOHR: Final = 0.529177210903
"""Å in one Bohr."""
KCAL_PER_MOL: Final = 0.04336410390059322
"""eV in one kcal/mol (thermochemical calorie)."""
DEBYE: Final = 0.20819433442462576
"""e·Å in one Debye."""
BOLTZMANN: Final = 8.617333262e-5
"""Boltzmann's constant, eV/K."""
ACCELERATION: Final = 9.648533212331e-3
"""Å/fs² in one eV/(Å·amu); also eV/amu in (Å/fs)²."""
WAVENUMBER: Final = 1.239841984332e-4
"""eV in one cm⁻¹."""
HBAR: Final = 0.6582119569509067
"""Reduced Planck constant, eV·fs."""
FEMTOSECONDS_PER_PICOSECOND: Final = 1000.0
