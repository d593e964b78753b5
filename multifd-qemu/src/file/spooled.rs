//! A snapshot's file that never gets a name: it is kept elsewhere, such as in a store.

use super::SnapshotFile;
use super::target::{SaveOptions, Saved, Target, in_file};
use crate::{Error, MappedFile, PhysicalMap, Snapshot};
use multifd_core::packet::Uuid;
use multifd_transport_file::{Digest, Written};
use std::path::Path;

/// A whole snapshot in a file without a name, which goes when this is dropped, or after a `kill -9`
/// with the next file in its folder. It is not brought to the disk.
#[derive(Debug)]
pub struct Spooled {
    target: Target,
    digest: Option<Digest>,
    saved: Saved,
}

impl Target {
    /// A file in `folder` that will not get a name: [`Target::keep_spooled`] or
    /// [`Target::adopt_spooled`] complete it.
    ///
    /// # Errors
    /// [`Error::SnapshotFile`] if the folder cannot be written to.
    pub fn spool(folder: &Path, options: &SaveOptions) -> Result<Self, Error> {
        Self::create(&folder.join("multifd-spool"), options)
    }

    /// As [`Target::keep`], for a file that gets no name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keep_spooled(
        self,
        snapshot: &Snapshot,
        layout: Option<&PhysicalMap>,
    ) -> Result<Spooled, Error> {
        let done = self.received(snapshot, layout);
        self.spooled(done)
    }

    /// As [`Target::adopt`], for a file that gets no name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn adopt_spooled(
        self,
        mapped: &MappedFile,
        uuid: Uuid,
        layout: Option<&PhysicalMap>,
    ) -> Result<Spooled, Error> {
        let done = self.written_by_qemu(mapped, uuid, layout);
        self.spooled(done)
    }

    fn spooled(self, done: Result<(Written, Option<Digest>), Error>) -> Result<Spooled, Error> {
        let (written, digest) = done.map_err(|error| in_file(self.path.clone(), error))?;
        let has_layout = digest
            .as_ref()
            .is_some_and(|digest| !digest.layout.is_empty());
        Ok(Spooled {
            target: self,
            digest,
            saved: Saved {
                written,
                has_layout,
            },
        })
    }
}

impl Spooled {
    /// What is stored in it.
    pub fn saved(&self) -> Saved {
        self.saved
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(&self) -> Result<SnapshotFile, Error> {
        SnapshotFile::of(self.target.own_file()?, &self.target.path, None)
    }

    /// The bytes of its companion, if it has one.
    pub fn companion(&self) -> Option<Vec<u8>> {
        self.digest.as_ref().map(Digest::encode)
    }
}
