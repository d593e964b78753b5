//! Lists of borrowed ranges whose allocation outlives the borrow.

use crate::{Iov, Region};

/// A range with a lifetime that a [`Reuse`] can hold. Implemented by [`Iov`] and [`Region`] only.
///
/// # Safety
/// `At<'a>` must be `Self` with another lifetime, and must not need to be dropped.
pub unsafe trait Reusable: Copy {
    /// The same range, borrowed for `'a`.
    type At<'a>: Copy;
}

// SAFETY: an Iov with another lifetime, and Copy.
unsafe impl Reusable for Iov<'static> {
    type At<'a> = Iov<'a>;
}

// SAFETY: a Region with another lifetime, and Copy.
unsafe impl Reusable for Region<'static> {
    type At<'a> = Region<'a>;
}

/// A list of ranges that keeps its allocation from packet to packet.
#[derive(Debug)]
pub struct Reuse<T> {
    items: Vec<T>,
}

/// A reusable list of [`Iov`]s.
pub type IovBuf = Reuse<Iov<'static>>;
/// A reusable list of [`Region`]s.
pub type RegionBuf = Reuse<Region<'static>>;

impl<T> Default for Reuse<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

impl<T: Reusable> Reuse<T> {
    /// The list, emptied, for ranges that live as long as the borrow.
    pub fn begin<'a>(&'a mut self) -> &'a mut Vec<T::At<'a>> {
        self.items.clear();
        // SAFETY: the types differ in a lifetime only (see `Reusable`). The list is empty here.
        // What is put in is never read after 'a: this function is the only way in, and clears it
        // first.
        unsafe { &mut *(&raw mut self.items).cast::<Vec<T::At<'a>>>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_begins_empty_and_keeps_its_allocation() {
        let mut list = IovBuf::default();
        {
            let bytes = [1u8; 8];
            let iovs = list.begin();
            iovs.extend([Iov::from(&bytes[..4]), Iov::from(&bytes[4..])]);
            assert_eq!(iovs.len(), 2);
        }
        let capacity = list.items.capacity();
        let iovs = list.begin();
        assert!(iovs.is_empty());
        assert_eq!(iovs.capacity(), capacity);
    }
}
