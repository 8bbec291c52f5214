//! What a Rust file refers to, read from its tokens: comments and strings do not count, macros' arguments do.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use std::ops::RangeInclusive;

/// What was read from one file.
#[derive(Debug, Default)]
pub struct Tokens {
    /// Every path outside of test code, as `["std", "fs", "read"]`, with its line. Groups are spread out, so
    /// `use std::{fs, io::Read}` gives two; a glob ends in `*`.
    pub paths: Vec<(Vec<String>, usize)>,
    /// Lines of items that exist only in tests.
    pub test_lines: Vec<RangeInclusive<usize>>,
    /// Names of modules in files of their own that exist only in tests.
    pub test_modules: Vec<String>,
    /// Lines that belong to a literal of several lines: text in another language.
    pub literal_lines: Vec<RangeInclusive<usize>>,
    /// Every attribute, as text without spaces, with its line, also those of tests.
    pub attributes: Vec<(String, usize)>,
}

/// Reads a file; `None` when it is not Rust.
pub fn read(text: &str) -> Option<Tokens> {
    let stream: TokenStream = text.parse().ok()?;
    let mut tokens = Tokens::default();
    tokens.items(stream, false);
    Some(tokens)
}

impl Tokens {
    /// Whether a line belongs to an item that exists only in tests.
    pub fn is_test(&self, line: usize) -> bool {
        self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    /// Whether a line is part of a literal of several lines.
    pub fn is_literal(&self, line: usize) -> bool {
        self.literal_lines.iter().any(|lines| lines.contains(&line))
    }

    /// Walks over a sequence of tokens; `test` says that it stands inside of a test item.
    fn items(&mut self, stream: TokenStream, test: bool) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < trees.len() {
            if let Some(attribute) = attribute(&trees, at) {
                let line = attribute.span_open().start().line;
                let text = attribute.stream().to_string().replace(' ', "");
                let only_tests = matches!(&*text, "cfg(test)" | "test");
                self.attributes.push((text, line));
                self.items(attribute.stream(), test);
                at += 2;
                if only_tests && !test {
                    at = self.test_item(&trees, at, line);
                }
                continue;
            }
            match &trees[at] {
                TokenTree::Ident(_) => {
                    let mut found = Vec::new();
                    let next = path(&trees, at, &[], &mut found);
                    if !test {
                        self.paths.extend(found);
                    }
                    // What a path ends in may be a group with further code: it is walked over as well.
                    at = next;
                }
                TokenTree::Group(group) => {
                    self.items(group.stream(), test);
                    at += 1;
                }
                TokenTree::Literal(literal) => {
                    let (start, end) = (literal.span().start().line, literal.span().end().line);
                    if start < end {
                        self.literal_lines.push(start..=end);
                    }
                    at += 1;
                }
                TokenTree::Punct(_) => at += 1,
            }
        }
    }

    /// Walks over the item behind `#[cfg(test)]` or `#[test]`: up to its body or semicolon.
    fn test_item(&mut self, trees: &[TokenTree], start: usize, first_line: usize) -> usize {
        let mut module = None;
        for (at, tree) in trees.iter().enumerate().skip(start) {
            let last_line = tree.span().end().line;
            match tree {
                TokenTree::Ident(ident) if ident == "mod" => {
                    module = trees.get(at + 1).map(ToString::to_string)
                }
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    self.test_lines.push(first_line..=last_line);
                    self.items(body.stream(), true);
                    return at + 1;
                }
                TokenTree::Group(part) => self.items(part.stream(), true),
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    self.test_lines.push(first_line..=last_line);
                    self.test_modules.extend(module);
                    return at + 1;
                }
                _ => {}
            }
        }
        trees.len()
    }
}

/// The brackets of the attribute that begins at `at`.
fn attribute(trees: &[TokenTree], at: usize) -> Option<&Group> {
    if !is_punct(trees.get(at), '#') {
        return None;
    }
    match trees.get(at + 1)? {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => Some(group),
        _ => None,
    }
}

/// Reads the path that begins at `at` into `found`, with `before` in front of it; returns where it ends. A group at its
/// end is spread out when it can be part of a `use`, and left to the caller when it is code.
fn path(
    trees: &[TokenTree],
    mut at: usize,
    before: &[String],
    found: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let mut segments = before.to_vec();
    let line = trees[at].span().start().line;
    loop {
        match trees.get(at) {
            Some(TokenTree::Ident(ident)) => segments.push(ident.to_string()),
            Some(TokenTree::Punct(star)) if star.as_char() == '*' => segments.push("*".into()),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                for part in inner.split(|tree| is_punct(Some(tree), ',')).filter(|part| !part.is_empty()) {
                    path(part, 0, &segments, found);
                }
                return at + 1;
            }
            // `::<…>` and other things that end a path.
            _ => break,
        }
        at += 1;
        if !(is_punct(trees.get(at), ':') && is_punct(trees.get(at + 1), ':')) {
            break;
        }
        at += 2;
    }
    found.push((segments, line));
    at.max(1)
}

fn is_punct(tree: Option<&TokenTree>, wanted: char) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        read(text)
            .unwrap()
            .paths
            .into_iter()
            .map(|(path, line)| format!("{line} {}", path.join("::")))
            .collect()
    }

    #[test]
    fn use_groups_are_spread_out() {
        let text = "use std::{fs, io::{self, Read as R}};\nuse aya::*;";
        assert_eq!(
            paths(text),
            ["1 use", "1 std::fs", "1 std::io::self", "1 std::io::Read", "2 use", "2 aya::*"]
        );
    }

    #[test]
    fn paths_in_code_types_and_macros_are_found_but_not_in_comments_and_strings() {
        let text = "/// std::net\nfn f(a: std::time::Instant) { // std::fs\n g!(\"std::fs\", std::thread::spawn::<T>(x));\n}";
        let found = paths(text);
        assert!(found.contains(&"2 std::time::Instant".into()), "{found:?}");
        assert!(found.contains(&"3 std::thread::spawn".into()), "{found:?}");
        assert!(!found.iter().any(|path| path.contains("fs") || path.contains("net")), "{found:?}");
    }

    #[test]
    fn test_items_are_left_out() {
        let text =
            "use a::b;\n#[cfg(test)]\nmod tests {\n use std::fs;\n}\n#[cfg(test)]\nmod synthetic;\nuse c::d;";
        let tokens = read(text).unwrap();
        let found: Vec<String> = tokens.paths.iter().map(|(path, _)| path.join("::")).collect();
        assert_eq!(found, ["use", "a::b", "cfg", "test", "cfg", "test", "use", "c::d"]);
        assert_eq!(tokens.test_modules, ["synthetic"]);
        let tested: Vec<usize> = (1..=8).filter(|line| tokens.is_test(*line)).collect();
        assert_eq!(tested, [2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn only_literals_of_several_lines_are_text_in_another_language() {
        let tokens = read("fn f() {\n g(\"one\",\n \"two\nthree\", 4);\n}").unwrap();
        let text: Vec<usize> = (1..=5).filter(|line| tokens.is_literal(*line)).collect();
        assert_eq!(text, [3, 4]);
    }

    #[test]
    fn attributes_are_found_everywhere() {
        let tokens = read("#[cfg(test)]\nmod t {\n #[ignore = \"why\"]\n fn f() {}\n}").unwrap();
        assert_eq!(tokens.attributes, [("cfg(test)".into(), 1), ("ignore=\"why\"".into(), 3)]);
    }
}
