//! The methods by their names on the command line.

use crate::failure::Failure;
use crate::options::Compression;
use clap::ValueEnum;
use multifd_compress::{Qatzip, Qpl, Uadk, Zlib, Zstd};
use multifd_core::{Method, Plain};
use std::sync::Arc;

/// The method at a level.
pub(crate) fn method(compression: Compression, level: u8) -> Result<Arc<dyn Method>, Failure> {
    Ok(match compression {
        Compression::None => Arc::new(Plain),
        Compression::Zlib => Arc::new(Zlib::new(level)?),
        Compression::Zstd => Arc::new(Zstd::new(level)?),
        Compression::Qpl => Arc::new(Qpl),
        Compression::Uadk => Arc::new(Uadk),
        Compression::Qatzip => Arc::new(Qatzip),
    })
}

/// The method's name as QEMU's `multifd-compression` parameter has it.
pub(crate) fn qemu_name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
        Compression::Qpl => "qpl",
        Compression::Uadk => "uadk",
        Compression::Qatzip => "qatzip",
    }
}

/// What may be received: the one asked for, or all there are.
pub(crate) fn decoders(only: Option<Compression>) -> Result<Vec<Arc<dyn Method>>, Failure> {
    let all = Compression::value_variants().iter();
    let wanted = all.filter(|one| only.is_none_or(|only| only == **one));
    wanted.map(|one| method(*one, 1)).collect()
}
