//! Runs of adjacent pages.

/// Adjacent pages of a RAM block: one IOV, one positioned write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes from the start of the block.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
}

/// Joins page offsets that follow each other in memory and in order. `page_size` is bytes.
pub fn runs(offsets: impl IntoIterator<Item = u64>, page_size: u32) -> impl Iterator<Item = Run> {
    let mut offsets = offsets.into_iter().peekable();
    let page = page_size as usize;
    std::iter::from_fn(move || {
        let mut run = Run {
            offset: offsets.next()?,
            len: page,
        };
        while offsets
            .next_if(|&next| Some(next) == run.offset.checked_add(run.len as u64))
            .is_some()
        {
            run.len += page;
        }
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_pages_become_one_run() {
        let found: Vec<Run> = runs([0, 4096, 8192, 20480, 16384, 24576], 4096).collect();
        let expected = [(0, 12288), (20480, 4096), (16384, 4096), (24576, 4096)];
        assert_eq!(found, expected.map(|(offset, len)| Run { offset, len }));
        assert_eq!(runs([u64::MAX - 4095, 0], 4096).count(), 2);
    }
}
