//! zstd: one frame a packet; a peer's may also be one for the life of a channel, as QEMU's are.

use crate::packet_bytes::page_bytes;
use crate::stream::{Decompress, Inflate, Refused, check_level};
use crate::zstd_window::{Window, window};
use multifd_core::{
    HeldMemory, IndependentPackets, MemoryBudget, MethodError, PageBatch, PayloadBuf, Prepare,
    Unpack,
};
use multifd_packet::Compression;
use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name,
};

/// Largest window a peer may ask for, as a power of two: 32 MiB, what level 20 uses.
const WINDOW_LOG_MAX: u32 = 25;

/// A window up to this size is part of what every channel may take.
const FREE_WINDOW: u64 = 1 << 20;

/// For level 1, which is there for its speed: a window and a table that stay in a processor's own
/// caches. A packet has up to 512 KiB, all of which zstd would keep in its window (measured:
/// BENCHMARKING.md).
const FASTEST: [CParameter; 2] = [CParameter::WindowLog(18), CParameter::HashLog(13)];

/// The method zstd. Each packet is a complete frame of its own, which a real QEMU 10.0.2 takes as
/// well as its own kind: so any thread can prepare any packet.
///
/// A decoder keeps the largest window that a frame of its channel asked for, up to 32 MiB, for the
/// channel's life. All decoders of one `Zstd`, and of its clones, share a [`MemoryBudget`] for
/// windows above 1 MiB.
#[derive(Debug, Clone)]
pub struct Zstd {
    level: u8,
    windows: MemoryBudget,
}

impl Zstd {
    /// zstd at a level from 1 (fastest) to 20 (smallest), 0 being zstd's own default; QEMU's
    /// default is 1.
    ///
    /// # Errors
    /// [`MethodError::Level`] for a level above 20.
    pub fn new(level: u8) -> Result<Self, MethodError> {
        let level = check_level(Compression::Zstd, level, 20)?;
        Ok(Self {
            level,
            ..Self::default()
        })
    }

    /// Counts the windows of decoders in `budget`.
    #[must_use]
    pub fn with_budget(mut self, budget: MemoryBudget) -> Self {
        self.windows = budget;
        self
    }
}

impl Default for Zstd {
    fn default() -> Self {
        Self {
            level: 1,
            windows: MemoryBudget::default(),
        }
    }
}

fn codec(code: usize) -> MethodError {
    MethodError::Codec {
        method: Compression::Zstd,
        reason: get_error_name(code).into(),
    }
}

fn no_memory() -> MethodError {
    MethodError::Codec {
        method: Compression::Zstd,
        reason: "no memory for a context".into(),
    }
}

impl multifd_core::Method for Zstd {
    fn kind(&self) -> Compression {
        Compression::Zstd
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(FrameCompress {
            encoder: FrameEncoder::new()?,
            level: self.level.into(),
            pages: Vec::new(),
        }))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        let mut context = DCtx::try_create().ok_or_else(no_memory)?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(codec)?;
        context.reset(ResetDirective::SessionOnly).map_err(codec)?;
        Ok(Box::new(Decompress::new(FrameDecoder {
            context,
            at_start: true,
            held: None,
            windows: self.windows.clone(),
        })))
    }
}

impl IndependentPackets for Zstd {}

struct FrameCompress {
    encoder: FrameEncoder,
    level: i32,
    pages: Vec<u8>,
}

impl Prepare for FrameCompress {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        let input = page_bytes(pages, &mut self.pages).map_err(|reason| MethodError::Codec {
            method: Compression::Zstd,
            reason,
        })?;
        self.encoder.encode(self.level, input, payload.staged())
    }
}

/// A context that makes complete frames, and keeps its tables from one to the next.
pub(crate) struct FrameEncoder {
    context: CCtx<'static>,
    level: Option<i32>,
}

impl FrameEncoder {
    pub(crate) fn new() -> Result<Self, MethodError> {
        Ok(Self {
            context: CCtx::try_create().ok_or_else(no_memory)?,
            level: None,
        })
    }

    /// Appends `input` as one frame.
    pub(crate) fn encode(
        &mut self,
        level: i32,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        if self.level != Some(level) {
            // What was tuned for another level goes.
            self.context
                .reset(ResetDirective::Parameters)
                .map_err(codec)?;
            let tuned = FASTEST.into_iter().filter(|_| level == 1);
            for parameter in [CParameter::CompressionLevel(level)]
                .into_iter()
                .chain(tuned)
            {
                self.context.set_parameter(parameter).map_err(codec)?;
            }
            self.level = Some(level);
        }
        let start = out.len();
        out.reserve(zstd::zstd_safe::compress_bound(input.len()));
        let mut input = InBuffer::around(input);
        let mut output = OutBuffer::around_pos(out, start);
        // With all of the input there and room for all of the output, zstd goes straight from one
        // to the other.
        let left = self
            .context
            .compress_stream2(
                &mut output,
                &mut input,
                zstd::zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_end,
            )
            .map_err(codec)?;
        if left == 0 {
            return Ok(());
        }
        Err(MethodError::Codec {
            method: Compression::Zstd,
            reason: format!("a frame took {left} bytes more than zstd said it may"),
        })
    }
}

/// A context that decodes frames, and asks for their windows first.
struct FrameDecoder {
    context: DCtx<'static>,
    /// Whether a frame begins next.
    at_start: bool,
    /// What the largest window so far takes.
    held: Option<HeldMemory>,
    windows: MemoryBudget,
}

impl FrameDecoder {
    /// Takes a frame's window from the budget before zstd allocates it; `false` if the frame's
    /// header is cut off.
    fn reserve(&mut self, frame: &[u8]) -> Result<bool, Refused> {
        let bytes = match window(frame) {
            Window::Bytes(bytes) => bytes,
            Window::CutOff => return Ok(false),
            // zstd says what it is instead.
            Window::NoFrame => return Ok(true),
        };
        // What is larger than the limit, zstd refuses before it allocates.
        if bytes <= FREE_WINDOW || bytes > 1 << WINDOW_LOG_MAX {
            return Ok(true);
        }
        let what = "a zstd window";
        match &mut self.held {
            Some(held) => held.grow_to(what, bytes),
            None => self
                .windows
                .take(what, bytes)
                .map(|held| self.held = Some(held)),
        }
        .map_err(Refused::Memory)?;
        Ok(true)
    }
}

impl Inflate for FrameDecoder {
    const METHOD: Compression = Compression::Zstd;

    fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<(usize, usize), Refused> {
        if self.at_start && !self.reserve(input)? {
            return Ok((0, 0));
        }
        let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around(out));
        let left = self
            .context
            .decompress_stream(&mut output, &mut input)
            .map_err(|code| Refused::Damaged(get_error_name(code).into()))?;
        self.at_start = left == 0;
        Ok((input.pos(), output.pos()))
    }
}
