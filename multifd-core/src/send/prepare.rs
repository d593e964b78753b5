//! A batch prepared: zero pages sorted out, the others encoded. On a channel's thread, or a pool's.

use crate::{Error, PageBatch, PayloadBuf, Prepare, ZeroPages};

/// Sorts out zero pages, if they are looked for, and prepares the payload of the others.
pub(super) fn prepare_batch(
    prepare: &mut dyn Prepare,
    zero_pages: &ZeroPages,
    batch: &mut PageBatch,
    payload: &mut PayloadBuf,
) -> Result<(), Error> {
    batch.sort_out_zero_pages(zero_pages)?;
    payload.clear();
    if batch.normal().is_empty() {
        return Ok(());
    }
    prepare
        .prepare(batch, payload)
        .map_err(|cause| Error::Prepare { cause })
}
