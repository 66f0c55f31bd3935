//! Remembers the last head of a connection.

use std::ops::Range;
use std::rc::Rc;

use memchr::memmem;

use crate::proxy::fields::{Fields, plain_number};

/// A head with its announced length.
pub trait Head {
    fn fields(&self) -> &Fields;
}

/// Parses the heads of one connection, and remembers the last one.
///
/// The heads that follow each other on a connection mostly differ in their Content-Length alone.
/// Such a head has the same meaning as the last one but for that number, and comparing two byte
/// strings is a tenth of the work of parsing one.
pub struct HeadMemo<H> {
    head: Option<Rc<H>>,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl<H> Default for HeadMemo<H> {
    fn default() -> Self {
        Self {
            head: None,
            before: Vec::new(),
            after: Vec::new(),
        }
    }
}

impl<H: Head> HeadMemo<H> {
    /// The head that `data` is, and the length that it announces for the body.
    ///
    /// # Errors
    ///
    /// Those of `parse`.
    pub fn read<E>(
        &mut self,
        data: &[u8],
        parse: fn(&[u8]) -> Result<H, E>,
    ) -> Result<(Rc<H>, Option<u64>), E> {
        if let Some(known) = self.recall(data) {
            return Ok(known);
        }
        let head = Rc::new(parse(data)?);
        let length = head.fields().content_length;
        self.remember(&head, data);
        Ok((head, length))
    }

    fn recall(&self, data: &[u8]) -> Option<(Rc<H>, Option<u64>)> {
        let head = self.head.as_ref()?;
        let digits = data
            .strip_prefix(self.before.as_slice())?
            .strip_suffix(self.after.as_slice())?;
        let length = match head.fields().content_length {
            None => {
                if !digits.is_empty() {
                    return None;
                }
                None
            }
            Some(_) => Some(plain_number(digits)?),
        };
        Some((Rc::clone(head), length))
    }

    fn remember(&mut self, head: &Rc<H>, data: &[u8]) {
        let cut = match head.fields().content_length {
            None => data.len()..data.len(),
            Some(_) => match length_digits(data) {
                Some(digits) => digits,
                None => return,
            },
        };
        self.before.clear();
        self.before.extend_from_slice(&data[..cut.start]);
        self.after.clear();
        self.after.extend_from_slice(&data[cut.end..]);
        self.head = Some(Rc::clone(head));
    }
}

/// Where the digits of the Content-Length field stand.
fn length_digits(data: &[u8]) -> Option<Range<usize>> {
    const NAME: &[u8] = b"content-length:";
    let mut at = memmem::find(data, b"\r\n")? + 2;
    loop {
        let line_end = at + memmem::find(&data[at..], b"\r\n")?;
        let line = &data[at..line_end];
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let value = line[NAME.len()..].trim_ascii_start();
            let start = line_end - value.len();
            return Some(start..start + value.trim_ascii_end().len());
        }
        at = line_end + 2;
    }
}
