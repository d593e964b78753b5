//! Questions and requests to the kernel about a region's pages. Policy is the caller's.

use crate::Region;
use std::io;

/// Linux 6.1's; not in `libc` for every C library.
const MADV_COLLAPSE: libc::c_int = 25;

impl Region<'_> {
    /// Bytes of a huge page, where the system's pages have 4 KiB.
    pub const HUGE: usize = 2 << 20;

    /// Populates the range: every page of it gets memory. Contents stay the same, also if others
    /// write meanwhile.
    ///
    /// # Errors
    /// The system's, of `MADV_POPULATE_WRITE` (Linux 5.14).
    pub fn populate(&self) -> io::Result<()> {
        loop {
            // SAFETY: the range is mapped; its contents stay the same.
            if unsafe { libc::madvise(self.base.cast(), self.len, libc::MADV_POPULATE_WRITE) } == 0
            {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Collapses the range into huge pages of [`Region::HUGE`] bytes, contents kept, and says
    /// whether that worked. The range must be aligned to them and have at least one page
    /// (`MADV_COLLAPSE`, Linux 6.1).
    pub fn collapse(&self) -> bool {
        let aligned =
            self.base.addr().is_multiple_of(Self::HUGE) && self.len.is_multiple_of(Self::HUGE);
        // SAFETY: the range is mapped; its contents stay the same.
        let made =
            aligned && unsafe { libc::madvise(self.base.cast(), self.len, MADV_COLLAPSE) } == 0;
        // With larger base pages the system does nothing, and reports success.
        made && self.last_page().is_resident()
    }

    fn last_page(&self) -> Self {
        let len = self.len.min(4096);
        // SAFETY: inside the region, or at its end.
        let base = unsafe { self.base.add(self.len - len) };
        Self { base, len, ..*self }
    }

    /// Whether the first 16 pages of the range have memory, according to `mincore`.
    pub fn is_resident(&self) -> bool {
        const FIRST: usize = 16;
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let asked = self.len.min(FIRST * page);
        let mut resident = [0; FIRST];
        // SAFETY: the range is mapped, and there is a byte for each of its pages.
        let result = unsafe { libc::mincore(self.base.cast(), asked, resident.as_mut_ptr()) };
        let pages = resident.get(..asked.div_ceil(page)).unwrap_or_default();
        result == 0 && pages.iter().all(|page| page & 1 != 0)
    }
}
