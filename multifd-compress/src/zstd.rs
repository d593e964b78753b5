//! zstd: one frame for the life of a channel, each packet's part ended with a flush; a peer's may also be one frame a
//! packet.

use crate::stream::{Compress, Decompress, Deflate, Inflate, check_level};
use multifd_core::{MethodError, Prepare, Unpack};
use multifd_packet::Method;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

/// Largest window a peer may ask for, as a power of two: 32 MiB, what level 20 uses.
const WINDOW_LOG_MAX: u32 = 25;

/// The method zstd.
#[derive(Debug, Clone, Copy)]
pub struct Zstd {
    level: u8,
}

impl Zstd {
    /// zstd at a level from 1 (fastest) to 20 (smallest), 0 being zstd's own default; QEMU's default is 1.
    ///
    /// # Errors
    /// [`MethodError::Level`] for a level above 20.
    pub fn new(level: u8) -> Result<Self, MethodError> {
        let level = check_level(Method::Zstd, level, 20)?;
        Ok(Self { level })
    }
}

impl Default for Zstd {
    fn default() -> Self {
        Self { level: 1 }
    }
}

fn codec(code: usize) -> MethodError {
    MethodError::Codec {
        method: Method::Zstd,
        reason: get_error_name(code).into(),
    }
}

fn no_memory() -> MethodError {
    MethodError::Codec {
        method: Method::Zstd,
        reason: "no memory for a context".into(),
    }
}

impl multifd_core::Method for Zstd {
    fn kind(&self) -> Method {
        Method::Zstd
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        let mut context = CCtx::try_create().ok_or_else(no_memory)?;
        context
            .set_parameter(CParameter::CompressionLevel(self.level.into()))
            .map_err(codec)?;
        Ok(Box::new(Compress::new(context)))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        let mut context = DCtx::try_create().ok_or_else(no_memory)?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(codec)?;
        context.reset(ResetDirective::SessionOnly).map_err(codec)?;
        Ok(Box::new(Decompress::new(context)))
    }
}

impl Deflate for CCtx<'static> {
    const METHOD: Method = Method::Zstd;

    fn deflate(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.reserve(zstd_safe::compress_bound(input.len()));
        let mut input = InBuffer::around(input);
        loop {
            let start = out.len();
            let mut output = OutBuffer::around_pos(out, start);
            let left = self
                .compress_stream2(
                    &mut output,
                    &mut input,
                    zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_flush,
                )
                .map_err(get_error_name)?;
            if left == 0 {
                return Ok(());
            }
            out.reserve(left);
        }
    }
}

impl Inflate for DCtx<'static> {
    const METHOD: Method = Method::Zstd;

    fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), String> {
        let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around(out));
        self.decompress_stream(&mut output, &mut input)
            .map_err(get_error_name)?;
        Ok((input.pos(), output.pos()))
    }
}
