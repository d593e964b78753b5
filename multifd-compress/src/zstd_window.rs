//! The window that a zstd frame's header asks for (RFC 8878, section 3.1.1.1).

const MAGIC: u32 = 0xfd2f_b528;
/// Frames that hold nothing to decode: sixteen magic numbers from here on.
const SKIPPABLE: u32 = 0x184d_2a50;

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// Bytes of memory that decoding the frame takes.
    Bytes(u64),
    /// The header goes on after the end of the input.
    CutOff,
    /// The input is not a zstd frame.
    NoFrame,
}

/// Reads the header of the frame that `input` begins with.
pub(crate) fn window(input: &[u8]) -> Window {
    let Some((magic, rest)) = input.split_first_chunk::<4>() else {
        return Window::CutOff;
    };
    match u32::from_le_bytes(*magic) {
        MAGIC => after_magic(rest).map_or(Window::CutOff, Window::Bytes),
        magic if magic & !0xf == SKIPPABLE => Window::Bytes(0),
        _ => Window::NoFrame,
    }
}

/// The window, if the header is whole.
fn after_magic(rest: &[u8]) -> Option<u64> {
    let (&descriptor, rest) = rest.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    let (window, rest) = if single_segment {
        (None, rest)
    } else {
        let (&byte, rest) = rest.split_first()?;
        let base = 1u64 << (10 + (byte >> 3));
        (Some(base + base / 8 * u64::from(byte & 7)), rest)
    };
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let rest = rest.get(dictionary..)?;
    let content = match descriptor >> 6 {
        0 if single_segment => Some(number(rest, 1)?),
        0 => None,
        1 => Some(number(rest, 2)? + 256),
        2 => Some(number(rest, 4)?),
        _ => Some(number(rest, 8)?),
    };
    match (window, content) {
        (Some(window), Some(content)) => Some(window.min(content)),
        (window, content) => window.or(content),
    }
}

fn number(bytes: &[u8], len: usize) -> Option<u64> {
    let bytes = bytes.get(..len)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

    fn frame(log: u32, level: i32, pledged: Option<u64>) -> Vec<u8> {
        let mut context = CCtx::create();
        context
            .set_parameter(CParameter::CompressionLevel(level))
            .unwrap();
        if log > 0 {
            context.set_parameter(CParameter::WindowLog(log)).unwrap();
        }
        context.set_pledged_src_size(pledged).unwrap();
        let data = vec![7; 1000];
        let mut out = Vec::with_capacity(10_000);
        let mut output = OutBuffer::around(&mut out);
        let mut input = InBuffer::around(&data);
        let flush = zstd::zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_flush;
        while context
            .compress_stream2(&mut output, &mut input, flush)
            .unwrap()
            > 0
        {}
        out
    }

    #[test]
    fn the_window_is_the_one_the_encoder_was_given() {
        for log in [10, 17, 20, 25, 27] {
            assert_eq!(
                window(&frame(log, 1, None)),
                Window::Bytes(1 << log),
                "{log}"
            );
        }
        // QEMU's levels: 1 takes 512 KiB, those up to 19 take 8 MiB or less, 20 takes 32 MiB.
        for level in 1..20 {
            let Window::Bytes(bytes) = window(&frame(0, level, None)) else {
                panic!("level {level}");
            };
            assert!(bytes <= 8 << 20, "{level}");
        }
        assert_eq!(window(&frame(0, 1, None)), Window::Bytes(512 << 10));
        assert_eq!(window(&frame(0, 20, None)), Window::Bytes(32 << 20));
        // A frame that says how much is in it needs no more.
        assert_eq!(window(&frame(25, 1, Some(1000))), Window::Bytes(1000));
        assert_eq!(window(&frame(25, 1, Some(100_000))), Window::Bytes(100_000));
        assert_eq!(window(b"\x5a\x2a\x4d\x18\x01\0\0\0x"), Window::Bytes(0));
    }

    #[test]
    fn what_is_cut_off_or_no_frame_is_told_apart() {
        let whole = frame(20, 1, Some(1000));
        for len in 0..6 {
            assert_eq!(window(&whole[..len]), Window::CutOff, "{len}");
        }
        assert_eq!(window(b"not a frame at all"), Window::NoFrame);
    }
}
