//! What the fuzz targets run of this module; only there with the feature `fuzzing`. Not an interface.

use std::path::{Path, PathBuf};

use wire::spec::ArchiveFormat;

use super::{archive, tree};

/// Where the project is; `None`: the archive was refused.
pub fn unpack(blob: &Path, format: ArchiveFormat, root: &Path) -> Option<PathBuf> {
    let limits = tree::Limits { bytes: 1 << 20, files: 100 };
    archive::unpack(blob, format, root, limits).ok()
}
