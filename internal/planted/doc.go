// Package planted has a switch for each bug that the simulation must find. The switches
// are constants that are false, so that the compiler leaves the bugs out; built with the
// tag plantedbugs they are variables, which a test sets.
package planted
