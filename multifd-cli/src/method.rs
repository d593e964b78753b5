//! The methods by their names on the command line.

use crate::options::Compression;
use multifd_compress::{Qatzip, Qpl, Uadk, Zlib, Zstd};
use multifd_core::{MemoryBudget, Method, Plain};
use std::sync::Arc;

/// The method's name, as QEMU's `multifd-compression` parameter has it.
pub(crate) fn name(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
        Compression::Qpl => "qpl",
        Compression::Uadk => "uadk",
        Compression::Qatzip => "qatzip",
        Compression::Auto => "auto",
    }
}

/// What may be received: the one asked for, or all there are. What decoders keep is counted in
/// `budget`.
pub(crate) fn decoders(only: Option<Compression>, budget: &MemoryBudget) -> Vec<Arc<dyn Method>> {
    let all: [Arc<dyn Method>; 6] = [
        Arc::new(Plain),
        Arc::new(Zlib::default()),
        Arc::new(Zstd::default().with_budget(budget.clone())),
        Arc::new(Qpl),
        Arc::new(Uadk),
        Arc::new(Qatzip),
    ];
    let accepted = |kind: &str| match only {
        None => true,
        Some(Compression::Auto) => kind == "none" || kind == "zstd",
        Some(only) => kind == name(only),
    };
    all.into_iter()
        .filter(|one| accepted(one.kind().name()))
        .collect()
}
