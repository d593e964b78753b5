// Its example needs these.
#![cfg_attr(
    all(feature = "pool", feature = "zlib", feature = "zstd"),
    doc = include_str!("../README.md")
)]
#![cfg_attr(
    not(all(feature = "pool", feature = "zlib", feature = "zstd")),
    doc = "Compression for multifd, as QEMU does it. This page is whole with all features."
)]
#![forbid(unsafe_code)]

#[cfg(feature = "auto")]
mod auto;
#[cfg(feature = "zlib")]
mod incompressible;
#[cfg(any(
    feature = "zlib",
    feature = "zstd",
    feature = "qpl",
    feature = "uadk",
    feature = "qatzip"
))]
mod packet_bytes;
#[cfg(any(feature = "qpl", feature = "uadk"))]
mod paged;
#[cfg(feature = "auto")]
mod pilot;
#[cfg(feature = "pool")]
mod pool;
#[cfg(feature = "qatzip")]
mod qatzip;
#[cfg(feature = "qpl")]
mod qpl;
#[cfg(any(feature = "zlib", feature = "zstd"))]
mod stream;
#[cfg(feature = "uadk")]
mod uadk;
#[cfg(feature = "zlib")]
mod zlib;
#[cfg(feature = "zstd")]
mod zstd;
#[cfg(feature = "zstd")]
mod zstd_window;

#[cfg(feature = "auto")]
pub use auto::{Auto, AutoReport, ChoiceReport};
#[cfg(feature = "pool")]
pub use pool::CompressPool;
#[cfg(feature = "qatzip")]
pub use qatzip::Qatzip;
#[cfg(feature = "qpl")]
pub use qpl::Qpl;
#[cfg(feature = "uadk")]
pub use uadk::Uadk;
#[cfg(feature = "zlib")]
pub use zlib::Zlib;
#[cfg(feature = "zstd")]
pub use zstd::Zstd;

/// Most bytes deflate makes of `len`: at its quickest it writes nine bits for each byte, and some
/// for blocks and streams.
#[cfg(any(feature = "qpl", feature = "uadk", feature = "qatzip"))]
fn deflate_bound(len: usize) -> usize {
    len + len / 4 + 128
}

pub use multifd_core;
