//! Files that hold a migration somewhere in them: where it begins.

use crate::Error;
use multifd_packet::MAIN_MAGIC;
use std::io::{self, Read, Seek, SeekFrom};

/// What libvirt's save images begin with, and those whose writing was cut off.
const SAVE_IMAGE: &[u8; 16] = b"LibvirtQemudSave";
const PARTIAL_IMAGE: &[u8; 16] = b"LibvirtQemudPart";
/// Bytes of a save image's header, after which a description of the domain comes. The length of
/// that stands at 20, little-endian as on the host that wrote it.
const HEADER: u64 = 92;
/// The migration begins at a multiple of this, in an image of the format "sparse".
const ALIGN: u64 = 4096;
/// How far from the end of the description it is looked for.
const REACH: u64 = 16 << 20;
/// Longest description taken.
const MAX_DESCRIPTION: u64 = 64 << 20;

/// Where the migration in a file begins, in bytes: at its start, or in a save image of libvirt's,
/// after what libvirt puts before it.
///
/// # Errors
/// [`Error::NotAMigration`] if it is neither; [`Error::Refused`] for save images of other formats
/// than "sparse", or that were cut off; [`Error::Io`].
pub fn find_migration(mut file: impl Read + Seek) -> Result<u64, Error> {
    let head = read(&mut file, 0)?;
    let name = head
        .first_chunk::<16>()
        .filter(|name| [SAVE_IMAGE, PARTIAL_IMAGE].contains(name));
    let Some(name) = name else {
        // Reading the migration tells whether it is one.
        return Ok(0);
    };
    let refused = |what: &str, advice: &str| Error::Refused {
        offset: 0,
        what: what.into(),
        advice: advice.into(),
    };
    if name == PARTIAL_IMAGE {
        return Err(refused(
            "a save image of libvirt's that was not finished",
            "save the guest again",
        ));
    }
    let description = head
        .get(20..24)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let after = HEADER + u64::from(description).min(MAX_DESCRIPTION);
    let mut at = after.next_multiple_of(ALIGN);
    while at < after + REACH {
        let found = read(&mut file, at)?;
        if found.starts_with(&MAIN_MAGIC.to_be_bytes()) {
            return Ok(at);
        }
        if found.is_empty() {
            break;
        }
        at += ALIGN;
    }
    Err(refused(
        "a save image of libvirt's without pages at fixed places",
        "save the guest with `virsh save --image-format sparse`",
    ))
}

/// The first bytes at a place of the file; fewer at its end.
fn read(file: &mut (impl Read + Seek), at: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let result = file
        .seek(SeekFrom::Start(at))
        .and_then(|_| file.take(24).read_to_end(&mut bytes));
    result.map_err(|cause: io::Error| Error::Io {
        offset: at,
        what: "looking for a migration",
        cause,
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn image(description: u32, at: usize) -> Vec<u8> {
        let mut bytes = vec![0; at + 8];
        bytes[..16].copy_from_slice(SAVE_IMAGE);
        bytes[20..24].copy_from_slice(&description.to_le_bytes());
        bytes[at..at + 8].copy_from_slice(b"QEVM\0\0\0\x03");
        bytes
    }

    #[test]
    fn a_migration_is_found_at_the_start_or_after_libvirts_header() {
        assert_eq!(find_migration(Cursor::new(b"QEVM\0\0\0\x03")).unwrap(), 0);
        assert_eq!(find_migration(Cursor::new(b"anything else")).unwrap(), 0);
        assert_eq!(find_migration(Cursor::new(b"")).unwrap(), 0);
        for (description, at) in [(0, 1 << 20), (5000, 8192), (3_000_000, 4 << 20)] {
            assert_eq!(
                find_migration(Cursor::new(image(description, at))).unwrap(),
                at as u64
            );
        }
        // What looks like one within the description is none.
        let mut bytes = image(9000, 1 << 20);
        bytes[4096..4104].copy_from_slice(b"QEVM\0\0\0\x03");
        assert_eq!(find_migration(Cursor::new(bytes)).unwrap(), 1 << 20);
    }

    #[test]
    fn other_save_images_say_which_format_is_needed() {
        let error = find_migration(Cursor::new(image(u32::MAX, 100)))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--image-format sparse"), "{error}");
        let error = find_migration(Cursor::new(image(0, 92)))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--image-format sparse"), "{error}");
        let mut partial = image(0, 4096);
        partial[..16].copy_from_slice(PARTIAL_IMAGE);
        let error = find_migration(Cursor::new(partial))
            .unwrap_err()
            .to_string();
        assert!(error.contains("not finished"), "{error}");
    }
}
