// Package lint holds the house rules that can be checked by a program, as
// tests: imports go down only, pure packages stay pure, the map in
// docs/ARCHITECTURE.md names the packages that exist, functions and files stay
// short, documents keep their shape. It has no code outside its tests, and it
// does not repeat what a linter knows already (.golangci.yml).
//
// Every rule is a function from the text of a file to a list of complaints, and
// has a test that shows it complaining, so that no rule is silently dead.
//
// What breaks a rule for a reason stands in ratchet.txt with the size that it
// has. An entry must be exact: whoever makes the thing smaller lowers it, and
// whoever repairs it removes it. New entries are for reviewers to refuse.
package lint
