// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/* For kernels with BTF: the programs read conntrack themselves. */
#include "conntrack.h"
#include "programs.h"
