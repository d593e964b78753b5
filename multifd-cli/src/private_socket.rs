//! Where QEMU and this program meet.

use crate::failure::Failure;
use multifd_transport_socket::Address;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// An address that was asked for, or a Unix socket in a folder nobody else may enter, which goes with it.
pub(crate) struct MeetingPlace {
    pub(crate) address: Address,
    folder: Option<PathBuf>,
}

impl MeetingPlace {
    /// The address asked for, or a private one.
    pub(crate) fn new(asked: Option<&Address>) -> Result<Self, Failure> {
        if let Some(address) = asked {
            return Ok(Self {
                address: address.clone(),
                folder: None,
            });
        }
        let folder = std::env::temp_dir().join(format!("multifd-{}", std::process::id()));
        // Somebody else's folder of that name is no private one.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
        made.map_err(|source| Failure::Open {
            path: folder.clone(),
            source,
        })?;
        Ok(Self {
            address: Address::Unix(folder.join("migration")),
            folder: Some(folder),
        })
    }
}

impl Drop for MeetingPlace {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            // What is left of it is harmless.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
