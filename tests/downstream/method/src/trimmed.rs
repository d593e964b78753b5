//! The method: a page is its length without the zeros at its end, two bytes, big-endian, and so
//! many bytes. A private code point names it: a QEMU refuses it.

use multifd_core::packet::{Compression, PrivateCode};
use multifd_core::{
    IncomingPages, Method, MethodError, PageBatch, PayloadBuf, Prepare, RecvChannel, Unpack,
    UnpackError,
};

pub const TRIMMED: Compression = Compression::Private(PrivateCode::new(3).unwrap());

pub struct Trimmed;

impl Method for Trimmed {
    fn kind(&self) -> Compression {
        TRIMMED
    }

    fn preparer(&self) -> Result<Box<dyn Prepare>, MethodError> {
        Ok(Box::new(Page::default()))
    }

    fn unpacker(&self) -> Result<Box<dyn Unpack>, MethodError> {
        Ok(Box::new(Page::default()))
    }
}

/// One page's copy: guest memory may change while it is looked at.
#[derive(Default)]
struct Page(Vec<u8>);

impl Prepare for Page {
    fn prepare(&mut self, pages: &PageBatch, payload: &mut PayloadBuf) -> Result<(), MethodError> {
        self.0.resize(pages.block().page_size() as usize, 0);
        for &offset in pages.normal() {
            let region = pages
                .block()
                .page(offset)
                .map_err(|error| MethodError::Codec {
                    method: TRIMMED,
                    reason: error.to_string(),
                })?;
            region.copy_to(&mut self.0);
            let len = self
                .0
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |last| last + 1);
            payload
                .staged()
                .extend_from_slice(&(len as u16).to_be_bytes());
            payload.staged().extend_from_slice(&self.0[..len]);
        }
        Ok(())
    }
}

impl Unpack for Page {
    fn unpack(
        &mut self,
        pages: &IncomingPages<'_>,
        channel: &mut dyn RecvChannel,
    ) -> Result<(), UnpackError> {
        let mut left = pages.payload_len();
        for (index, target) in pages.pages().enumerate() {
            let cut = || UnpackError::TooShort {
                method: TRIMMED,
                page: index,
                pages: pages.len(),
            };
            left = left.checked_sub(2).ok_or_else(cut)?;
            let mut len = [0; 2];
            channel.recv(&mut len)?;
            let len = usize::from(u16::from_be_bytes(len)).min(pages.page_size());
            left = left.checked_sub(len).ok_or_else(cut)?;
            self.0.clear();
            self.0.resize(pages.page_size(), 0);
            channel.recv(&mut self.0[..len])?;
            target.copy_from(&self.0);
        }
        match left {
            0 => Ok(()),
            left => Err(UnpackError::TooLong {
                method: TRIMMED,
                pages: pages.len(),
                left,
            }),
        }
    }
}
