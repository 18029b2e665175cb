//! Patterns of log messages: literal text with named holes.
//!
//! | in a pattern | stands for |
//! |---|---|
//! | `{name}` | one or more characters, as few as fit; captured |
//! | `{name#}` | a decimal number, with or without a minus; captured |
//! | `{*}` | any characters, or none; not captured |
//! | `{{` | one `{` |
//!
//! A pattern covers the whole message, from its first to its last character. Holes take the
//! shortest text that lets the next literal follow, so two holes need a literal between them.
//!
//! Captures fill a template: `{name}` there is what the hole of that name took, `{name|words}` is
//! the words where the pattern has no such hole.

use std::fmt::Write as _;

use super::line::Printable;

/// What the holes of a pattern took, in the pattern's order.
pub(super) type Captures<'p, 't> = Vec<(&'p str, &'t str)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'p> {
    Literal(&'p str),
    Any,
    Text(&'p str),
    Number(&'p str),
}

/// The pieces of a pattern or template, in order. A `{` that is never closed is taken literally.
pub(super) struct Pieces<'p>(&'p str);

impl<'p> Pieces<'p> {
    pub(super) fn of(pattern: &'p str) -> Self {
        Pieces(pattern)
    }
}

impl<'p> Iterator for Pieces<'p> {
    type Item = Piece<'p>;

    fn next(&mut self) -> Option<Piece<'p>> {
        if self.0.is_empty() {
            return None;
        }
        if let Some(rest) = self.0.strip_prefix("{{") {
            let brace = &self.0[..1];
            self.0 = rest;
            return Some(Piece::Literal(brace));
        }
        if let Some((name, rest)) = self
            .0
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
        {
            self.0 = rest;
            return Some(match name.strip_suffix('#') {
                Some(name) => Piece::Number(name),
                None if name == "*" => Piece::Any,
                None => Piece::Text(name),
            });
        }
        let first = self.0.chars().next().map_or(0, char::len_utf8);
        let end = self.0[first..]
            .find('{')
            .map_or(self.0.len(), |at| at + first);
        let (literal, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(Piece::Literal(literal))
    }
}

/// Matches a whole message against a pattern.
///
/// What follows a hole is looked for from the left, once: where it is found first is as good as any
/// later place, as the next hole can take what lies between. So a hostile message costs no more
/// than a few passes over it.
pub(super) fn capture<'p, 't>(pattern: &'p str, text: &'t str) -> Option<Captures<'p, 't>> {
    let pieces: Vec<Piece<'p>> = Pieces::of(pattern).collect();
    let mut captures = Vec::new();
    let mut rest = text;
    let mut pieces = pieces.as_slice();
    let (fixed, holes) = pieces.split_at(fixed_run(pieces));
    rest = &rest[fit(fixed, rest, &mut captures)?..];
    pieces = holes;
    while let Some((hole, after)) = pieces.split_first() {
        let (fixed, holes) = after.split_at(fixed_run(after));
        let least = usize::from(matches!(hole, Piece::Text(_)));
        let mut ends = rest
            .char_indices()
            .map(|(at, _)| at)
            .chain([rest.len()])
            .skip(least);
        let mark = captures.len();
        rest = ends.find_map(|end| {
            captures.truncate(mark);
            if let Piece::Text(name) = *hole {
                captures.push((name, &rest[..end]));
            }
            let left = &rest[end..][fit(fixed, &rest[end..], &mut captures)?..];
            (!holes.is_empty() || left.is_empty()).then_some(left)
        })?;
        pieces = holes;
    }
    rest.is_empty().then_some(captures)
}

/// How many pieces stand before the next hole of any length.
fn fixed_run(pieces: &[Piece<'_>]) -> usize {
    pieces
        .iter()
        .take_while(|p| matches!(p, Piece::Literal(_) | Piece::Number(_)))
        .count()
}

/// How much of the text literals and numbers take from its start.
fn fit<'p, 't>(
    pieces: &[Piece<'p>],
    text: &'t str,
    captures: &mut Captures<'p, 't>,
) -> Option<usize> {
    let mut at = 0;
    for piece in pieces {
        let rest = &text[at..];
        match *piece {
            Piece::Literal(literal) => at += rest.strip_prefix(literal).map(|_| literal.len())?,
            Piece::Number(name) => {
                let unsigned = rest.strip_prefix('-').unwrap_or(rest);
                let digits = unsigned.bytes().take_while(u8::is_ascii_digit).count();
                if digits == 0 {
                    return None;
                }
                let taken = rest.len() - unsigned.len() + digits;
                captures.push((name, &rest[..taken]));
                at += taken;
            }
            Piece::Any | Piece::Text(_) => return None,
        }
    }
    Some(at)
}

/// Fills a template; captured text is shown without control characters. A name that nothing
/// captured and that has no words of its own is left out.
pub(super) fn fill(template: &str, captures: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() + 32);
    for piece in Pieces::of(template) {
        match piece {
            Piece::Literal(literal) => out.push_str(literal),
            Piece::Any => {}
            Piece::Text(name) | Piece::Number(name) => {
                let (name, words) = name.split_once('|').unwrap_or((name, ""));
                let value = captures
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map_or(words, |(_, value)| value);
                // Writing to a String does not fail.
                let _ = write!(out, "{}", Printable(value));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn got(pattern: &'static str, text: &'static str) -> Option<Vec<(&'static str, &'static str)>> {
        capture(pattern, text)
    }

    #[test]
    fn holes_take_the_least() {
        assert_eq!(
            got(
                "Can't lookup mount={mount#} for fd={fd#} path={path}",
                "Can't lookup mount=27 for fd=-3 path=/a b"
            ),
            Some(vec![("mount", "27"), ("fd", "-3"), ("path", "/a b")])
        );
        assert_eq!(
            got(
                "File {path} has bad size {a#} (expect {b#})",
                "File x has bad y has bad size 5 (expect 8)"
            ),
            Some(vec![("path", "x has bad y"), ("a", "5"), ("b", "8")])
        );
        assert_eq!(got("{*}: gone", "unix: gone"), Some(vec![]));
        assert_eq!(got("{*}gone", "gone"), Some(vec![]));
        assert_eq!(got("a {{b} {c}", "a {b} d"), Some(vec![("c", "d")]));
    }

    #[test]
    fn a_pattern_covers_the_whole_message() {
        assert_eq!(got("abc", "abcd"), None);
        assert_eq!(got("bc", "abc"), None);
        assert_eq!(got("a{x}", "a"), None);
        assert_eq!(got("a{x#}", "a-"), None);
        assert_eq!(got("a{x#}b", "a12c"), None);
        assert_eq!(got("", ""), Some(vec![]));
    }

    #[test]
    fn templates() {
        assert_eq!(
            fill("{path|a file} is {what}gone{{", &[("path", "/x\n")]),
            "/x\\n is gone{"
        );
        assert_eq!(fill("{path|a file} is gone", &[]), "a file is gone");
    }

    proptest! {
        #[test]
        fn any_text_any_pattern(pattern in ".{0,20}", text in ".{0,40}") {
            let _ = capture(&pattern, &text);
            let _ = fill(&pattern, &[("a", &text)]);
        }

        #[test]
        fn captures_are_what_was_put_in(path in "/[a-z ]{1,20}", fd in any::<i32>()) {
            let text = format!("No file for fd {fd} path {path}");
            let captures = capture("No file for fd {fd#} path {path}", &text).unwrap();
            let fd = fd.to_string();
            prop_assert_eq!(captures, vec![("fd", fd.as_str()), ("path", path.as_str())]);
        }
    }
}
