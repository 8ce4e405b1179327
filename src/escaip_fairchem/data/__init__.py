"""From raw labelled structures to the data sets that fairchem reads: conversion, statistics and a demonstration set."""
