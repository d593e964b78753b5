//! Snapshots as arguments: files, or snapshots in a store, which are files in a mount.

use crate::failure::Failure;
use crate::mounted::{Lasting, Private};
use crate::options::Image;
use crate::store_args::Key;
use multifd_qemu::Snapshot;
use multifd_qemu::file::SnapshotFile;
use multifd_transport_store::SnapshotAddress;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// The snapshot in a store that an argument names, if it does.
pub(crate) fn in_store(path: &Path) -> Result<Option<SnapshotAddress>, Failure> {
    let text = path.to_str().filter(|text| SnapshotAddress::is_one(text));
    Ok(text.map(str::parse).transpose()?)
}

/// A snapshot that has been opened. One in a store is mounted for as long as this lives.
pub(crate) struct Opened {
    file: SnapshotFile,
    mount: Option<Private>,
}

impl Deref for Opened {
    type Target = SnapshotFile;

    fn deref(&self) -> &SnapshotFile {
        &self.file
    }
}

impl Opened {
    /// Opens a snapshot for this process to read.
    pub(crate) fn open(path: &Path, offset: Option<u64>, key: &Key) -> Result<Self, Failure> {
        let (path, mount) = match in_store(path)? {
            None => (path.to_owned(), None),
            Some(address) => {
                let mount = Private::mount(&address, key)?;
                (mount.file(), Some(mount))
            }
        };
        Ok(Self {
            file: SnapshotFile::open(&path, offset)?,
            mount,
        })
    }

    /// Maps all of it. What is returned with it must live as long.
    pub(crate) fn map_by(
        self,
        map: impl FnOnce(SnapshotFile) -> Result<Snapshot, multifd_qemu::Error>,
    ) -> Result<(Snapshot, Option<Private>), multifd_qemu::Error> {
        Ok((map(self.file)?, self.mount))
    }
}

impl Image {
    /// Opens it for this process to read.
    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        Opened::open(&self.file, self.offset, &self.key)
    }

    /// Where a QEMU finds it, also when this process has ended. One in a store is served by another
    /// process, for as long as somebody has it open.
    pub(crate) fn lasting(&self) -> Result<SnapshotFile, Failure> {
        let path: PathBuf = match in_store(&self.file)? {
            None => self.file.clone(),
            Some(address) => Lasting::find_or_start(&address, &self.key)?,
        };
        Ok(SnapshotFile::open(&path, self.offset)?)
    }
}
