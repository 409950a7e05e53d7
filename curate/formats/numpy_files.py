"""Files of NumPy: .npy and .npz."""

import zipfile
import zlib

# What `np.load` raises for a file that is missing, empty, cut or damaged.
READ_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
